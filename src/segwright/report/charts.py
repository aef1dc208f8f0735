"""Charts as inline SVG: line charts, and dot plots with a box per group; coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH = 360
"""Width of each chart in SVG units, about that of a phone in pixels, so that text is readable there."""

NUM_COLOURS = 8
"""Number of style classes `s1` to `s8`, each with the colour and dashes of a series."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 34
_PLOT_HEIGHT = 150
_ROW_HEIGHT = 44
_MAX_NAME_CHARS = 26
_MAX_DOTS = 400
_MAX_POINTS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: y over x; None is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One row of a dot plot."""

    name: str
    values: Sequence[float]


def lines(title: str, series: Sequence[Series], *, x_name: str, limits: tuple[float, float] | None = None) -> Markup:
    """Draw a line chart.

    Args:
        title: caption, and label for screen readers.
        series: lines in order; empty ones are omitted.
        x_name: label of the x axis.
        limits: range of y; that of the values by default.
    """
    drawn = [item for item in series if any(value is not None for value in item.y)]
    if not drawn:
        return Markup("")
    low, high = limits or _span([value for item in drawn for value in item.y if value is not None])
    first, last = _span([value for item in drawn for value in item.x])
    left, right = float(_LEFT), float(WIDTH - _RIGHT)
    top, bottom = float(_TOP), float(_TOP + _PLOT_HEIGHT)
    parts = []
    for tick in _ticks(low, high):
        y = _scaled(tick, low, high, bottom, top)
        parts.append(_line("grid", left, y, right, y))
        parts.append(_text(_short(tick), left - 5, y + 4, "end"))
    for tick in _ticks(first, last, whole=True):
        x = _scaled(tick, first, last, left, right)
        parts.append(_text(_short(tick), x, bottom + 14, "middle"))
    parts.append(_text(x_name, right, bottom + 28, "end"))
    for index, item in enumerate(drawn):
        for run in _runs(item):
            across = (_scaled(x, first, last, left, right) for x, _ in run)
            up = (_scaled(min(max(y, low), high), low, high, bottom, top) for _, y in run)
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))
            if len(run) == 1:
                dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>')
                parts.append(dot.format(_style(index), *points.split(",")))
            else:
                parts.append(Markup('<polyline class="line {}" points="{}"/>').format(_style(index), points))
    return _figure(title, int(bottom) + _BOTTOM, parts, legend=[item.name for item in drawn])


def dots(title: str, groups: Sequence[Group], *, x_name: str, limits: tuple[float, float] | None = None) -> Markup:
    """Draw a dot plot with one row per group: a dot per value, a box of the quartiles, a bar at the median.

    Args:
        title: caption, and label for screen readers.
        groups: rows; empty ones are omitted.
        x_name: name and unit of the values.
        limits: range of x; that of the values by default.
    """
    drawn = [group for group in groups if len(group.values)]
    if not drawn:
        return Markup("")
    low, high = limits or _span([value for group in drawn for value in group.values])
    left, right = float(_RIGHT), float(WIDTH - _RIGHT)
    bottom = _TOP + _ROW_HEIGHT * len(drawn)
    parts = []
    for tick in _ticks(low, high):
        x = _scaled(tick, low, high, left, right)
        parts.append(_line("grid", x, _TOP, x, bottom))
        parts.append(_text(_short(tick), x, bottom + 14, "middle"))
    parts.append(_text(x_name, right, bottom + 28, "end"))
    for index, group in enumerate(drawn):
        parts += _row(group, _TOP + _ROW_HEIGHT * index, low, high, _style(index))
    return _figure(title, bottom + _BOTTOM, parts)


def _row(group: Group, top: float, low: float, high: float, style: str) -> list[Markup]:
    left, right = float(_RIGHT), float(WIDTH - _RIGHT)
    middle = top + 27
    values = np.sort(np.asarray(group.values, dtype=float))
    quartiles = [_scaled(value, low, high, left, right) for value in np.percentile(values, (25, 50, 75))]
    name = group.name if len(group.name) <= _MAX_NAME_CHARS else f"{group.name[: _MAX_NAME_CHARS - 3]}..."
    heading = f"{name}: median {_short(float(np.median(values)))}, lowest {_short(values[0])}, n = {len(values)}"
    parts = [
        _text(heading, left, top + 9, "start"),
        Markup('<rect class="box {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="16" rx="3"/>').format(
            style, quartiles[0], middle - 8, max(quartiles[2] - quartiles[0], 1.0)
        ),
    ]
    shown = values[np.unique(np.linspace(0, len(values) - 1, min(len(values), _MAX_DOTS)).round().astype(int))]
    for index, value in enumerate(shown):
        # The golden ratio spreads neighbouring dots vertically without random numbers.
        shift = (index * 0.618034 % 1 - 0.5) * 12
        parts.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(
                style, _scaled(float(value), low, high, left, right), middle + shift
            )
        )
    parts.append(_line(f"median {style}", quartiles[1], middle - 9, quartiles[1], middle + 9))
    return parts


def _figure(title: str, height: int, parts: Sequence[Markup], legend: Sequence[str] = ()) -> Markup:
    keys = Markup("").join(
        Markup('<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true">{}</svg>{}</li>').format(
            _line(f"line {_style(index)}", 0, 4, 24, 4), name
        )
        for index, name in enumerate(legend)
    )
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{parts}</svg>{keys}</figure>'
    ).format(
        title=title,
        width=WIDTH,
        height=height,
        parts=Markup("").join(parts),
        keys=Markup('<ul class="legend">{}</ul>').format(keys) if legend else "",
    )


def _runs(item: Series) -> list[list[tuple[float, float]]]:
    """Split a series at gaps, and thin it to the resolution of a screen."""
    step = max(1, math.ceil(len(item.x) / _MAX_POINTS))
    runs: list[list[tuple[float, float]]] = [[]]
    for index, (x, y) in enumerate(zip(item.x, item.y, strict=True)):
        if y is None:
            runs.append([])
        elif index % step == 0 or index == len(item.x) - 1:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _style(index: int) -> str:
    return f"s{index % NUM_COLOURS + 1}"


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _scaled(value: float, low: float, high: float, start: float, stop: float) -> float:
    return start + (value - low) / (high - low) * (stop - start)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values, widened if it is empty."""
    low, high = float(min(values)), float(max(values))
    if low == high:
        margin = abs(low) * 0.1 or 0.5
        return low - margin, high + margin
    return low, high


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return four to eight round numbers between `low` and `high`.

    >>> _ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.2g}"
