"""The colours of labels: the palette of Okabe and Ito, told apart with every common colour vision."""

from __future__ import annotations

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb")
"""Of the labels 1, 2, ...; labels beyond begin again."""

MISSED, EXTRA = "#d55e00", "#56b4e9"
"""Voxels that only the truth has, and that only the prediction has."""


def label_colour(position: int) -> str:
    """Return the colour of the label at a position among the foreground labels, from 1 on."""
    return COLOURS[(position - 1) % len(COLOURS)]


def rgb(colour: str) -> tuple[int, int, int]:
    """Return the three channels of a colour, 0 to 255.

    >>> rgb("#e69f00")
    (230, 159, 0)
    """
    red, green, blue = (int(colour[first : first + 2], 16) for first in (1, 3, 5))
    return red, green, blue
