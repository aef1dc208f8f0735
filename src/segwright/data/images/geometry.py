"""Compare the grids of two image files: equal, equal but for permuted or flipped axes, or different.

Positions are compared in voxels at the outer corners of the grid, where differences are largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import Problem
from segwright.data.images.formats import Header

TOLERANCE: Final = 0.1
"""In voxels: file formats round by far less; a shift of half a voxel means another origin convention."""
_ROUNDED_SPACING = 0.01
"""Relative, as some programs store two digits; `TOLERANCE` alone would accept more in grids of few voxels."""

Affine = npt.NDArray[np.float64]

_COPY_OR_RESAMPLE = "if they match voxel by voxel, copy one header into both files; if not, resample one of them"
_ONE_GRID = "resample or re-export the files on the same grid; all files of a case must share one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorientation:
    """How the axes of an array (C, Z, Y, X) are permuted and flipped to match another grid; values do not change.

    Attributes:
        order: for each axis of the result, the spatial axis of the array.
        flipped: for each axis of the result, whether it is flipped.
    """

    order: tuple[int, ...] = (0, 1, 2)
    flipped: tuple[bool, ...] = (False, False, False)

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self == Reorientation()

    def __call__(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the re-oriented array (C, *S), in C order; the array itself if nothing changes."""
        if self.is_identity:
            return array
        reoriented = array.transpose(0, *(axis + 1 for axis in self.order))
        steps = (slice(None, None, -1 if flipped else 1) for flipped in self.flipped)
        return np.ascontiguousarray(reoriented[(slice(None), *steps)])


def find_reorientation(header: Header, other: Header) -> Reorientation | None:
    """Return the reorientation of an array onto the grid of another one; None if there is none.

    Formats without an origin and direction (pictures, stacks) are compared by shape and spacing.
    """
    affines = _affine(header), _affine(other)
    reorientation: Reorientation | None = Reorientation()
    if affines[0] is not None and affines[1] is not None:
        reorientation = _reorientation_between(affines[0], affines[1], header.shape, other.shape)
    if reorientation is None or tuple(header.shape[axis] for axis in reorientation.order) != tuple(other.shape):
        return None
    spacing = tuple(header.spacing[axis] for axis in reorientation.order)
    return reorientation if _is_same_spacing(spacing, other.spacing, other.shape) else None


def grid_problem(header: Header, other: Header, *, file: object, name: str) -> Problem:
    """Return the problem of two grids that differ: how, and what to do.

    Args:
        header: of the file.
        other: of what it should match.
        file: where the problem is reported.
        name: name of the other file.
    """
    if tuple(header.shape) != tuple(other.shape):
        what = f"shape {tuple(header.shape)} differs from {tuple(other.shape)} of {name}"
        return Problem(where=str(file), what=what, remedy=_ONE_GRID)
    if not _is_same_spacing(header.spacing, other.spacing, other.shape):
        what = f"spacing {_rounded(header.spacing)} differs from {_rounded(other.spacing)} of {name}"
        return Problem(where=str(file), what=what, remedy=_ONE_GRID)
    pairs = {key: (header.geometry.get(key), other.geometry.get(key)) for key in ("origin", "direction", "affine")}
    keys = [key for key, pair in pairs.items() if _differs(*pair)]
    what = f"{' and '.join(keys)} {'differs from that' if len(keys) == 1 else 'differ from those'} of {name}"
    affines = _affine(header), _affine(other)
    if affines[0] is not None and affines[1] is not None:
        corners = _corners(header.shape)
        apart = np.linalg.norm((affines[0] @ corners - affines[1] @ corners)[:3], axis=0).max()
        what += f", voxels of the same index are up to {apart:.3g} mm apart"
    return Problem(where=str(file), what=what, remedy=_COPY_OR_RESAMPLE)


def _affine(header: Header) -> Affine | None:
    """Return the matrix from voxel indices (x, y, z) to positions, in the format's convention, if any."""
    geometry = header.geometry
    if geometry.get("affine") is not None:
        return np.array(geometry["affine"], dtype=np.float64)
    if geometry.get("direction") is None or geometry.get("origin") is None or geometry.get("spacing") is None:
        return None
    axes = len(geometry["origin"])
    affine = np.eye(4)
    affine[:axes, :axes] = np.reshape(geometry["direction"], (axes, axes)) * np.asarray(geometry["spacing"])
    affine[:axes, 3] = geometry["origin"]
    return affine


def _reorientation_between(
    affine: Affine, other: Affine, shape: tuple[int, ...], other_shape: tuple[int, ...]
) -> Reorientation | None:
    """Return the reorientation of an array (Z, Y, X) from one affine to another; None if there is none."""
    if np.array_equal(affine, other, equal_nan=True):
        return Reorientation()
    try:
        between = np.linalg.inv(other) @ affine
    except np.linalg.LinAlgError:  # a damaged header
        return None
    if not np.isfinite(between).all():
        return None
    along = np.abs(between[:3, :3]).argmax(axis=0)  # for each axis x, y, z the one of the other grid
    if len({*along.tolist()}) < 3:
        return None
    signs = np.sign(between[along, range(3)])
    corners = _corners(shape)
    expected = np.empty((3, corners.shape[1]))
    for axis, target in enumerate(along):
        last = other_shape[2 - target] - 1
        expected[target] = corners[axis] if signs[axis] > 0 else last - corners[axis]
    if np.abs((between @ corners)[:3] - expected).max() >= TOLERANCE:
        return None
    order, flipped = [0, 0, 0], [False, False, False]
    for axis, target in enumerate(along):
        order[2 - target], flipped[2 - target] = 2 - axis, bool(signs[axis] < 0)
    return Reorientation(order=tuple(order), flipped=tuple(flipped))


def _corners(shape: tuple[int, ...]) -> Affine:
    """Return the outer corners (4, 8) of a grid of `shape` (Z, Y, X), in homogeneous indices x, y, z."""
    sides = [(-0.5, extent - 0.5) for extent in reversed(shape)]
    corners: Affine = np.array([(*corner, 1.0) for corner in product(*sides)], dtype=np.float64).T
    return corners


def _is_same_spacing(one: tuple[float, ...], other: tuple[float, ...], shape: tuple[int, ...]) -> bool:
    """Return whether spacings are equal up to rounding, and the ends of centred grids within `TOLERANCE`."""
    ratios = np.abs(np.divide(one, np.maximum(np.abs(other), np.finfo(np.float64).tiny)) - 1)
    return bool((ratios <= _ROUNDED_SPACING).all() and (ratios * np.asarray(shape) / 2 < TOLERANCE).all())


def _differs(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is not other
    return np.shape(one) != np.shape(other) or not np.allclose(one, other)


def _rounded(spacing: tuple[float, ...]) -> str:
    return f"({', '.join(f'{extent:.6g}' for extent in spacing)})"
