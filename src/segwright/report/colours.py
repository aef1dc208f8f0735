"""Colours of labels: the palette of Okabe and Ito, safe for colour-blind readers."""

from __future__ import annotations

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb")
"""Colours of labels 1, 2, ..., repeated for more labels."""

MISSED, EXTRA = "#d55e00", "#56b4e9"
"""Colours of false-negative and false-positive voxels."""


def label_colour(position: int) -> str:
    """Return the colour of a foreground label by its position, counted from 1."""
    return COLOURS[(position - 1) % len(COLOURS)]


def rgb(colour: str) -> tuple[int, int, int]:
    """Convert a hex colour to RGB, 0 to 255.

    >>> rgb("#e69f00")
    (230, 159, 0)
    """
    red, green, blue = (int(colour[first : first + 2], 16) for first in (1, 3, 5))
    return red, green, blue
