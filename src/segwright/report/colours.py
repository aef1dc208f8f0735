"""Colours of labels (the palette of Okabe and Ito, safe for colour-blind readers), and how they cover an image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GREY_PERCENTILES = (0.5, 99.5)
"""Intensities shown black and white, as percentiles of an image."""

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


def blend(
    picture: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], colour: str, *, opacity: float
) -> npt.NDArray[np.float32]:
    """Return a picture (Y, X, 3), 0 to 255, with a colour blended over the pixels of a mask (Y, X)."""
    result: npt.NDArray[np.float32] = picture.copy()
    result[mask] = (1 - opacity) * result[mask] + opacity * np.array(rgb(colour), dtype=picture.dtype)
    return result
