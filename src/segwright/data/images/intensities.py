"""Clean intensities: NaN is read as 0, impossible values are refused, constant images are noted.

The same rule for training and prediction, for files of every format and for arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError, Problem

Floats = npt.NDArray[np.float32]

MAX_ABSOLUTE: Final = 1e30
"""No scanner measures more: larger values come from a wrong byte order, scaling or type, and their squares overflow."""


def clean_intensities(array: Floats, file: object) -> tuple[Floats, tuple[Problem, ...]]:
    """Return the intensities (C, *S) of an image with NaN replaced by 0, and notes about them.

    An array without NaN is returned itself.

    Raises:
        ImageError: values are infinite or larger than `MAX_ABSOLUTE`.
    """
    notes = []
    low, high = _extent(array)
    if np.isnan(low):
        missing = np.isnan(array)
        notes.append(missing_note(file, int(missing.sum())))
        array = np.where(missing, np.float32(0), array)
        low, high = _extent(array)
    if max(-low, high) > MAX_ABSOLUTE:
        with np.errstate(invalid="ignore"):
            raise impossible_values_error(file, int(np.count_nonzero(np.abs(array) > MAX_ABSOLUTE)))
    if low == high:
        what = f"every voxel is {low:g}; an image without contrast shows nothing"
        notes.append(Problem(where=str(file), what=what, remedy="check how it was exported"))
    return array, tuple(notes)


def missing_note(file: object, count: int) -> Problem:
    """Return the note about voxels that are NaN."""
    remedy = "replace them if they should not be 0"
    return Problem(where=str(file), what=f"{count} voxels are NaN and are read as 0", remedy=remedy)


def impossible_values_error(file: object, count: int) -> ImageError:
    """Return the error about impossible values."""
    return ImageError(
        f"{file}: {count} voxels are infinite or larger than {MAX_ABSOLUTE:g}, which no image has; check its type, "
        "byte order and scaling, and replace them"
    )


def _extent(array: Floats) -> tuple[float, float]:
    """Return the smallest and the largest value; NaN if any value is."""
    with np.errstate(invalid="ignore"):
        return float(array.min(initial=np.inf)), float(array.max(initial=-np.inf))
