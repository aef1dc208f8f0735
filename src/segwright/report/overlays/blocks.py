"""Turn a case into panels: choose its plane and slices, and draw labels, prediction and reference over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import crop
from segwright.core.errors import locate_errors
from segwright.core.text import listed
from segwright.report.overlays.panels import Pixels, draw_panel
from segwright.report.overlays.shown_case import Positions, ShownCase
from segwright.report.overlays.slices import Counts, choose_slices, class_areas
from segwright.report.overlays.views import View, view_of
from segwright.report.volumes import box_around, quantise

LABELS: Final = "labels"
PREDICTION: Final = "prediction"

_MAX_MISSING: Final = 4
"""Labels that are named because no slice shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawOptions:
    """How cases are drawn.

    Attributes:
        names: of the labels, in the order of their positions.
        plane: see `views.view_of`.
        slices: largest number of slices of a case.
        size: pixels of the longer side of a panel.
        zoom: whether only the surroundings of the labels are drawn.
        contours: draw labels as contours only, and a reference dashed into the same panels.
        role: what the labels are: `LABELS` or `PREDICTION`.
        ignored: position of the ignore label; None without one.
    """

    names: Sequence[str]
    plane: str
    slices: int
    size: int
    zoom: bool
    contours: bool
    role: str
    ignored: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture with its caption and the directions at its top, bottom, left and right (empty if unknown)."""

    pixels: Pixels
    caption: str
    letters: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A case on a sheet: its name, a line about it, rows of panels, and the positions of the labels in them."""

    title: str
    remark: str
    rows: tuple[tuple[Panel, ...], ...]
    labels: frozenset[int]


def draw_case(case: ShownCase, options: DrawOptions) -> Block:
    """Draw a case.

    Raises:
        ConfigError: a plane is wanted, and the orientation is unknown.
    """
    shape = case.image.shape[1:]
    with locate_errors(f"case {case.identifier}"):
        view = view_of(options.plane, shape=shape, spacing=case.spacing, directions=case.directions)
    areas = _areas(case, options, view)
    chosen = choose_slices(areas.reshape(-1, areas.shape[-1]), options.slices)
    if options.zoom:
        case = _around_labels(case, view.axis)
    drawn: list[tuple[str, Positions | None]] = [(options.role, case.labels)]
    if case.reference is not None and not options.contours:
        drawn.insert(0, ("reference", case.reference))
    rows = [
        tuple(_panel(case, options, view, index, labels, name if len(drawn) > 1 else "") for index in chosen)
        for name, labels in drawn
    ]
    shown = np.flatnonzero(_occur(areas[..., list(chosen)])) + 1
    return Block(
        title=case.identifier,
        remark=_remark(case, options, view, areas, chosen),
        rows=tuple(rows),
        labels=frozenset(shown.tolist()),
    )


def _panel(case: ShownCase, options: DrawOptions, view: View, index: int, labels: Positions | None, name: str) -> Panel:
    shape = case.image.shape[1:]
    grey = quantise(view.slice(case.image, index), case.window)
    under = case.reference if options.contours else None
    pixels = draw_panel(
        np.moveaxis(grey, 0, -1) if len(grey) > 1 else grey[0],
        size=view.size(shape, case.spacing, options.size),
        labels=None if labels is None else view.slice(labels, index),
        filled=not options.contours,
        reference=None if under is None else view.slice(under, index),
    )
    depth = shape[view.axis]
    where = f"slice {index + 1} of {depth}" if depth > 1 else ""
    return Panel(pixels=pixels, caption=", ".join(filter(None, (name, where))), letters=view.letters)


def _around_labels(case: ShownCase, axis: int) -> ShownCase:
    """Return a case cropped to the surroundings of its labels and references, but not across its slices."""
    maps = [each > 0 for each in (case.labels, case.reference) if each is not None]
    if not maps:
        return case
    box = list(box_around(np.logical_or.reduce(maps)))
    box[axis] = (0, case.image.shape[1 + axis])
    return replace(
        case,
        image=crop(case.image, tuple(box)),
        labels=None if case.labels is None else crop(case.labels, tuple(box)),
        reference=None if case.reference is None else crop(case.reference, tuple(box)),
    )


def _areas(case: ShownCase, options: DrawOptions, view: View) -> Counts:
    """Return what slices are chosen by, as (maps, K, slices): labels, reference, and each where they differ."""
    num = len(options.names)
    maps = [each for each in (case.labels, case.reference) if each is not None]
    if case.labels is not None and case.reference is not None:
        differs = case.labels != case.reference
        if options.ignored is not None:
            differs &= case.reference != options.ignored
        maps += [each * differs for each in maps]
    depth = case.image.shape[1 + view.axis]
    areas = [class_areas(each, num, view.axis) for each in maps]
    return np.stack(areas) if areas else np.zeros((0, num, depth), dtype=np.int64)


def _remark(case: ShownCase, options: DrawOptions, view: View, areas: Counts, chosen: Sequence[int]) -> str:
    """Return a line about a case: plane, spacing, and labels that are not shown."""
    height, width = (case.spacing[axis] for axis in view.axes)
    parts = [view.name] if view.name else []
    parts.append(f"pixels of {height:.3g} x {width:.3g}")
    if case.labels is None:
        parts.append(f"no {'label map' if options.role == LABELS else options.role}")
    elif not case.labels.any():
        parts.append(f"{'label map' if options.role == LABELS else options.role} is empty")
    missing = np.flatnonzero(_occur(areas) & ~_occur(areas[..., list(chosen)])).tolist()
    if missing:
        parts.append(f"not in these slices: {listed([options.names[index] for index in missing], limit=_MAX_MISSING)}")
    return ", ".join(parts)


def _occur(areas: Counts) -> npt.NDArray[np.bool_]:
    """Return which classes occur, as (K,), from their areas (maps, K, slices)."""
    return np.asarray(areas.sum(axis=(0, 2)) > 0)
