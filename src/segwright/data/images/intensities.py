"""Which intensities of an image are believed: NaN is read as 0, impossible values are refused, empty images noted.

One rule for training and prediction, for files of every format and for arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError, Problem

Floats = npt.NDArray[np.float32]

LARGEST: Final = 1e30
"""No scanner measures more: such values come from a wrong byte order, scaling or type, and squares of them overflow."""


def clean_intensities(array: Floats, file: object) -> tuple[Floats, tuple[Problem, ...]]:
    """Return the intensities (C, *S) of an image, NaN as 0, and what there is to say of them.

    An array without NaN is returned itself.

    Raises:
        ImageError: values are infinite or larger than `LARGEST`.
    """
    notes = []
    low, high = _extent(array)
    if np.isnan(low):
        missing = np.isnan(array)
        notes.append(missing_note(file, int(missing.sum())))
        array = np.where(missing, np.float32(0), array)
        low, high = _extent(array)
    if max(-low, high) > LARGEST:
        with np.errstate(invalid="ignore"):
            raise impossible_values_error(file, int(np.count_nonzero(np.abs(array) > LARGEST)))
    if low == high:
        what = f"every voxel is {low:g}; an image without contrast shows nothing"
        notes.append(Problem(where=str(file), what=what, remedy="check how it was exported"))
    return array, tuple(notes)


def missing_note(file: object, count: int) -> Problem:
    """Return what is said of voxels that are NaN."""
    remedy = "replace them where 0 is not what they mean"
    return Problem(where=str(file), what=f"{count} voxels are NaN and are read as 0", remedy=remedy)


def impossible_values_error(file: object, count: int) -> ImageError:
    """Return the error about values that no image has."""
    return ImageError(
        f"{file}: {count} voxels are infinite or larger than {LARGEST:g}, which no image is; check its type, "
        "byte order and scaling, and replace them"
    )


def _extent(array: Floats) -> tuple[float, float]:
    """Return the smallest and the largest value; NaN where there is one."""
    with np.errstate(invalid="ignore"):
        return float(array.min(initial=np.inf)), float(array.max(initial=-np.inf))
