"""Crop and pad arrays by boxes of voxels; spatial axes are always the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Box = tuple[tuple[int, int], ...]
"""Half-open interval per spatial axis."""


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the extent of a box per axis."""
    return tuple(stop - start for start, stop in box)


def box_slices(box: Box) -> tuple[Any, ...]:
    """Return the index that selects a box in the last axes of an array."""
    return (..., *(slice(start, stop) for start, stop in box))


def crop(array: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    """Return the view of `array` (..., *S) inside `box`."""
    inside: npt.NDArray[Any] = array[box_slices(box)]
    return inside


def uncrop(array: npt.NDArray[Any], box: Box, shape: Sequence[int], *, fill: float = 0) -> npt.NDArray[Any]:
    """Return an array of spatial `shape` that is `array` inside `box` and `fill` elsewhere; undoes `crop`."""
    result = np.full((*array.shape[: array.ndim - len(box)], *shape), fill, dtype=array.dtype)
    result[box_slices(box)] = array
    return result


def nonzero_box(mask: npt.NDArray[np.bool_]) -> Box:
    """Return the smallest box that holds every true voxel of `mask` (*S); the whole array if there is none."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (hits,) = np.nonzero(mask.any(axis=others))
        box.append((int(hits[0]), int(hits[-1]) + 1) if len(hits) else (0, mask.shape[axis]))
    return tuple(box)


def pad_to(array: npt.NDArray[Any], shape: Sequence[int], *, value: float = 0) -> tuple[npt.NDArray[Any], Box]:
    """Pad the last axes of `array` to at least `shape`, centred, with the smaller half of the padding on the low side.

    Returns:
        The padded array and the box that the content occupies in it.
    """
    leading = array.ndim - len(shape)
    widths, box = [(0, 0)] * leading, []
    for size, wanted in zip(array.shape[leading:], shape, strict=True):
        missing = max(wanted - size, 0)
        widths.append((missing // 2, missing - missing // 2))
        box.append((missing // 2, missing // 2 + size))
    if not any(low or high for low, high in widths):
        return array, tuple(box)
    return np.pad(array, widths, constant_values=value), tuple(box)
