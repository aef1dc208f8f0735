"""Colours of labels (the palette of Okabe and Ito, safe for colour-blind readers), and how they cover an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.data.labels import IGNORE, Labels

GREY_PERCENTILES = (0.5, 99.5)
"""Intensities shown black and white, as percentiles of an image."""

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb")
"""Colours of labels 1, 2, ...; those of more labels are lighter, then darker, then repeated."""

_SHADES = ((0.0, 0), (0.55, 255), (0.45, 0))
"""How much of which grey value is mixed into the colours of labels 1 to 8, 9 to 16, and 17 to 24."""

MISSED, EXTRA = "#d55e00", "#56b4e9"
"""Colours of false-negative and false-positive voxels."""


def label_colour(position: int) -> str:
    """Return the colour of a foreground label by its position, counted from 1.

    >>> label_colour(1), label_colour(9), label_colour(25)
    ('#e69f00', '#f4d48c', '#e69f00')
    """
    cycle, index = divmod(position - 1, len(COLOURS))
    share, grey = _SHADES[cycle % len(_SHADES)]
    return "#" + "".join(f"{round((1 - share) * part + share * grey):02x}" for part in rgb(COLOURS[index]))


def legend(labels: Labels) -> dict[int, str]:
    """Return a name for every label value, in the order of their colours; of region-based labels the regions with it.

    >>> legend(Labels({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, (1, 2)))
    {1: '1: whole', 2: '2: whole, core', 3: 'ignore (not trained on)'}
    """
    found = {value: labels.class_name(value) for value in labels.foreground_labels}
    for value in found if labels.has_regions else ():
        names = [name for name, key in labels.declared.items() if value in (key if isinstance(key, tuple) else (key,))]
        found[value] = f"{value}: {', '.join(names)}"
    return found if labels.ignore_label is None else {**found, labels.ignore_label: f"{IGNORE} (not trained on)"}


def label_positions(
    label_map: npt.NDArray[Any], values: Sequence[int], *, mark_others: bool = False
) -> npt.NDArray[np.uint16]:
    """Return the position of each voxel's label (*S) among `values`, counted from 1; 0 for all other values.

    With `mark_others`, other values above 0 get the position after the last one.

    >>> label_positions(np.array([[0, 7], [2, 9]]), [2, 7])
    array([[0, 2],
           [1, 0]], dtype=uint16)
    """
    table = np.full(max(values, default=0) + 2, len(values) + 1 if mark_others else 0, dtype=np.uint16)
    table[0] = 0
    table[list(values)] = np.arange(1, len(values) + 1)
    result = np.empty(label_map.shape, dtype=np.uint16)
    for plane, positions in zip(label_map, result, strict=True):
        positions[...] = table[np.clip(plane, 0, len(table) - 1).astype(np.intp)]  # one plane at a time, for memory
    return result


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


def tint(picture: npt.NDArray[np.float32], labels: npt.NDArray[Any], *, opacity: float) -> npt.NDArray[np.float32]:
    """Return a picture (Y, X, 3), 0 to 255, with the colour of each label position (Y, X) blended over it."""
    result = picture
    for position in np.unique(labels[labels > 0]).tolist():
        result = blend(result, labels == position, label_colour(position), opacity=opacity)
    return result
