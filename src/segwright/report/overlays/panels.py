"""Draw one slice: grey values or colours, labels filled or as contours, and the reference as dashed contours."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from segwright.report.colours import tint

Pixels = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.integer[Any]]

_OPACITY: Final = 0.35
_PIXELS_PER_LINE_WIDTH: Final = 320
"""Of the longer side of a picture."""

_DASH: Final = 4
"""Pixels of a dash, for lines of width 1; black and white dashes are seen on any ground."""


def draw_panel(
    image: Pixels,
    *,
    size: tuple[int, int],
    labels: Positions | None = None,
    filled: bool = True,
    reference: Positions | None = None,
) -> Pixels:
    """Draw labels over a slice, as (*size, 3).

    Args:
        image: (Y, X) grey, or (Y, X, 3).
        size: height and width in pixels.
        labels: (Y, X), the position of each pixel's label, from 1; 0 is not drawn.
        filled: tint the labels; their contours are always drawn.
        reference: (Y, X) of other labels, drawn as contours dashed black and white, under those of `labels`.
    """
    picture = resize(image, size, smooth=True)
    canvas = (np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture).astype(np.float32)
    width = max(1, round(max(size) / _PIXELS_PER_LINE_WIDTH))
    drawn = None if labels is None else resize(labels, size)
    if drawn is not None and filled:
        canvas = tint(canvas, drawn, opacity=_OPACITY)
    if reference is not None:
        rows, columns = np.nonzero(contours(resize(reference, size), width))
        canvas[rows, columns] = 255.0 * ((rows + columns) // (_DASH * width) % 2)[:, None]
    if drawn is not None:
        canvas = tint(canvas, contours(drawn, width), opacity=1)
    return np.rint(canvas).clip(0, 255).astype(np.uint8)


def contours(labels: Positions, width: int = 1) -> Positions:
    """Return the labels (Y, X) of the outermost pixels of each region, 0 elsewhere.

    The border of the picture is no contour, since the region may continue there.

    >>> contours(np.array([[0, 0, 0, 0], [0, 5, 5, 5], [0, 5, 5, 5], [0, 5, 5, 5]]))
    array([[0, 0, 0, 0],
           [0, 5, 5, 5],
           [0, 5, 0, 0],
           [0, 5, 0, 0]])
    """
    is_edge = np.zeros(labels.shape, dtype=bool)
    for step in range(1, width + 1):
        for axis in (0, 1):
            moved, edge = np.moveaxis(labels, axis, 0), np.moveaxis(is_edge, axis, 0)
            differs = moved[step:] != moved[:-step]
            edge[step:] |= differs
            edge[:-step] |= differs
    return np.where(is_edge, labels, 0)


def resize(array: npt.NDArray[Any], size: tuple[int, int], *, smooth: bool = False) -> npt.NDArray[Any]:
    """Return a picture (Y, X, ...) of another size: of the nearest pixels, or interpolated and averaged (`smooth`)."""
    if smooth:
        return np.asarray(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, array.shape, strict=False)
    )
    picked: npt.NDArray[Any] = array[rows][:, columns]
    return picked
