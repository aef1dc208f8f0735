"""Values of label maps: what files may hold, which values occur, one channel per label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError
from segwright.core.text import MAX_LISTED, listed

MAX_UINT8_LABEL = 254
"""nnU-Net behaviour 2.1: a maximum of 255 is already written as uint16."""
MAX_WRITTEN_LABEL = 2**16 - 1
"""Of uint16, in which label maps are written."""

ROUNDING = 1e-3
"""Values this close to an integer are rounded; programs that scale or compress label maps leave such errors."""
MAX_LABEL_VALUE = 2**24
"""float32, in which label maps are read, represents every integer up to this one."""

NO_LABEL_MAP: Final[Mapping[int, int]] = {}

_BLOCK = 1 << 16
"""Voxels compared at once; they fit into the processor's cache."""


def one_hot(maps: npt.NDArray[Any], foreground: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return a label map (1, *S) as channels (len(foreground), *S); other values, including -1, are in none of them."""
    return np.stack([maps[0] == label for label in foreground]).astype(np.float32)


def whole_values(array: npt.NDArray[np.floating[Any]], file: object) -> npt.NDArray[np.floating[Any]]:
    """Round the values of a label map (any shape) that are within `ROUNDING` of integers.

    An array of integers, as nearly all are, is returned itself.

    Args:
        array: as it was read.
        file: named in the error.

    Raises:
        ImageError: values are not integers, or too large to be labels.
    """
    flat = array.reshape(-1)
    rounded: npt.NDArray[np.floating[Any]] | None = None
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        whole = np.rint(block)
        if not np.array_equal(whole, block):
            if not np.isfinite(block).all() or np.abs(block - whole).max() > ROUNDING:
                raise ImageError(f"{file}: {_describe_invalid(flat)}")
            if rounded is None:
                rounded = flat.copy()
            rounded[start : start + _BLOCK] = whole
    if flat.size and max(-flat.min(), flat.max()) > MAX_LABEL_VALUE:
        raise ImageError(f"{file}: {_describe_invalid(flat)}")
    return array if rounded is None else rounded.reshape(array.shape)


def mapped_values(array: npt.NDArray[Any], label_map: Mapping[int, int]) -> npt.NDArray[Any]:
    """Return a label map (any shape) with the values of a file replaced by labels; without any, the array itself.

    Args:
        array: whole numbers.
        label_map: from the value in the file to the label; no label is such a value itself, so that the order does not
            matter and labels stay as they are.
    """
    result = array
    for value, label in label_map.items():
        found = array == value
        if found.any():
            result = array.copy() if result is array else result
            result[found] = label
    return result


def distinct_values(array: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the distinct values of a label map of integers, ascending; needs little memory for any values."""
    found: set[int] = set()
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        low, high = int(block.min()), int(block.max())
        if low != high and high - low < _BLOCK:  # counting is many times faster than sorting
            found.update((np.flatnonzero(np.bincount((block - low).astype(np.int64))) + low).tolist())
        else:
            found.update(int(value) for value in ((low,) if low == high else np.unique(block)))
    return tuple(sorted(found))


def _describe_invalid(flat: npt.NDArray[np.floating[Any]]) -> str:
    """Describe what is wrong with the values (n,) of a label map."""
    bad = int(np.count_nonzero(~np.isfinite(flat)))
    if bad:
        return f"{bad} voxels are NaN or infinite, expected a whole number for each; replace them"
    values = np.unique(flat[(np.abs(flat - np.rint(flat)) > ROUNDING) | (np.abs(flat) > MAX_LABEL_VALUE)])
    shown = listed([np.format_float_positional(value, trim="-") for value in values[: MAX_LISTED + 1]])
    if np.abs(values).max() > MAX_LABEL_VALUE:
        return f"unexpected label value {shown}, expected whole numbers up to {MAX_LABEL_VALUE}"
    return (
        f"unexpected label value {shown}, expected whole numbers; threshold probabilities first, and resample label "
        "maps with nearest neighbours"
    )
