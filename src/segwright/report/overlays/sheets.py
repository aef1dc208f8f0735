"""Lay cases out on sheets: title, legend, and as many cases as fit.

Boxes are in pixels: left, top, width, height.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from segwright.core.text import printable
from segwright.report.overlays.blocks import Block, Panel

_MAX_WIDTH: Final = 2160
_MAX_HEIGHT: Final = 2200
"""Of a sheet; a single case that needs more gets it."""
_MIN_WIDTH: Final = 640

_MARGIN: Final = 20
_GAP: Final = 6
_BLOCK_GAP: Final = 24
_MIN_BLOCK_WIDTH: Final = 200
_MAX_LEGEND_ENTRY: Final = 300
_SWATCH: Final = 12

_TITLE, _NAME, _TEXT = 20, 14, 11
"""Sizes of letters."""
_LINE_HEIGHT: Final = 1.5
_INK, _QUIET, _PAPER, _BLACK = "#141414", "#5f5f5f", "#ffffff", "#000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetHeader:
    """What stands above the cases of every sheet: a title, lines of notes, and the labels that occur below.

    `legend` has the name and colour of each label, in the order of positions.
    """

    title: str
    notes: Sequence[str]
    legend: Sequence[tuple[str, str]]


def sheets(blocks: Iterable[Block], header: SheetHeader) -> Iterator[Image.Image]:
    """Yield sheets of as many cases as fit, from left to right and from top to bottom.

    Args:
        blocks: the cases; those of one sheet are in memory at the same time.
        header: of each sheet.
    """
    writer = _Writer(header)
    rows: list[list[Block]] = []
    for block in blocks:
        if rows and _row_width([*rows[-1], block]) <= _MAX_WIDTH - 2 * _MARGIN:
            extended = [*rows[:-1], [*rows[-1], block]]
        else:
            extended = [*rows, [block]]
        if rows and writer.height(extended, _MAX_WIDTH) > _MAX_HEIGHT:
            yield writer.draw(rows)
            extended = [[block]]
        rows = extended
    if rows:
        yield writer.draw(rows)


class _Writer:
    """Draws sheets with one header, in a font that matplotlib brings along."""

    def __init__(self, header: SheetHeader) -> None:
        self._header = header
        file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self._fonts = {size: ImageFont.truetype(str(file), size) for size in (_TITLE, _NAME, _TEXT)}

    def height(self, rows: Sequence[Sequence[Block]], width: int) -> int:
        """Return the height of a sheet."""
        header = _line(_TITLE) + _line(_TEXT) * (len(self._header.notes) + len(self._legend_lines(width, rows)))
        return 2 * _MARGIN + header + sum(_BLOCK_GAP + _row_height(row) for row in rows)

    def draw(self, rows: Sequence[Sequence[Block]]) -> Image.Image:
        """Return a sheet as wide and high as its cases need."""
        width = max(_MIN_WIDTH, *(_row_width(row) + 2 * _MARGIN for row in rows))
        sheet = Image.new("RGB", (width, self.height(rows, width)), _PAPER)
        pen = ImageDraw.Draw(sheet)
        top = self._draw_header(pen, width, rows)
        for row in rows:
            left, top = _MARGIN, top + _BLOCK_GAP
            for block in row:
                self._draw_block(sheet, pen, block, left, top)
                left += _block_width(block) + _BLOCK_GAP
            top += _row_height(row)
        return sheet

    def _draw_header(self, pen: ImageDraw.ImageDraw, width: int, rows: Sequence[Sequence[Block]]) -> int:
        """Draw title, notes and legend, and return where they end."""
        top, inner = _MARGIN, width - 2 * _MARGIN
        first, last = rows[0][0].title, rows[-1][-1].title
        cases = first if first == last else f"{first} to {last}"
        self._text(pen, (_MARGIN, top), f"{self._header.title}: {cases}", _TITLE, _INK, inner)
        top += _line(_TITLE)
        for note in self._header.notes:
            self._text(pen, (_MARGIN, top), note, _TEXT, _QUIET, inner)
            top += _line(_TEXT)
        for line in self._legend_lines(width, rows):
            left = _MARGIN
            for name, colour, needed in line:
                pen.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=colour, outline=_QUIET)
                self._text(pen, (left + _SWATCH + 5, top), name, _TEXT, _INK, needed)
                left += needed
            top += _line(_TEXT)
        return top

    def _legend_lines(self, width: int, rows: Sequence[Sequence[Block]]) -> list[list[tuple[str, str, int]]]:
        """Return the lines of the legend: name, colour and width of each entry."""
        lines: list[list[tuple[str, str, int]]] = []
        used = width
        for position in sorted(frozenset().union(*(block.labels for row in rows for block in row))):
            name, colour = self._header.legend[position - 1]
            shown = min(round(self._fonts[_TEXT].getlength(printable(name))), _MAX_LEGEND_ENTRY)
            needed = shown + _SWATCH + 5 + 2 * _GAP
            if used + needed > width - 2 * _MARGIN:
                lines.append([])
                used = 0
            lines[-1].append((name, colour, needed))
            used += needed
        return lines

    def _draw_block(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, block: Block, left: int, top: int) -> None:
        width = _block_width(block)
        self._text(pen, (left, top), block.title, _NAME, _INK, width)
        top += _line(_NAME)
        self._text(pen, (left, top), block.remark, _TEXT, _QUIET, width)
        top += _line(_TEXT)
        for row in block.rows:
            start = left
            for panel in row:
                height, across = panel.pixels.shape[:2]
                sheet.paste(Image.fromarray(panel.pixels), (start, top))
                self._draw_letters(pen, panel, start, top)
                self._text(pen, (start, top + height + 1), panel.caption, _TEXT, _QUIET, across)
                start += across + _GAP
            top += _panel_row_height(row)

    def _draw_letters(self, pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
        """Draw the directions at the middle of the panel's sides."""
        height, width = panel.pixels.shape[:2]
        places = (
            (left + width / 2, top + 2, "ma"),
            (left + width / 2, top + height - 2, "md"),
            (left + 3, top + height / 2, "lm"),
            (left + width - 3, top + height / 2, "rm"),
        )
        for letter, (x, y, anchor) in zip(panel.letters, places, strict=False):
            pen.text(
                (x, y), letter, font=self._fonts[_TEXT], fill=_PAPER, anchor=anchor, stroke_width=1, stroke_fill=_BLACK
            )

    def _text(
        self, pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: str, width: int
    ) -> None:
        """Write a line, cut to a width."""
        font, shown = self._fonts[size], printable(text)
        if font.getlength(shown) > width:
            kept = bisect_right(range(len(shown)), width, key=lambda count: ceil(font.getlength(f"{shown[:count]}...")))
            shown = f"{shown[: max(kept - 1, 0)]}..."
        pen.text(place, shown, font=font, fill=colour)


def _line(size: int) -> int:
    return round(_LINE_HEIGHT * size)


def _panel_row_height(row: Sequence[Panel]) -> int:
    return max(int(panel.pixels.shape[0]) for panel in row) + _line(_TEXT) + _GAP


def _block_width(block: Block) -> int:
    widths = [sum(int(panel.pixels.shape[1]) + _GAP for panel in row) - _GAP for row in block.rows]
    return max(_MIN_BLOCK_WIDTH, *widths)


def _row_width(row: Sequence[Block]) -> int:
    return sum(_block_width(block) + _BLOCK_GAP for block in row) - _BLOCK_GAP


def _row_height(row: Sequence[Block]) -> int:
    return max(_line(_NAME) + _line(_TEXT) + sum(map(_panel_row_height, block.rows)) for block in row)
