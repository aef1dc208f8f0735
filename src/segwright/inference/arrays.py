"""Arrays of a caller instead of files: any axis order and orientation in, a label map in the same order out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import nibabel
import numpy as np
import numpy.typing as npt
from torch import Tensor

from segwright.core.errors import ImageError
from segwright.data.formats import FLAT_SPACING_FACTOR
from segwright.data.images import Volume

REORIENTING_READERS: Final = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
"""Readers by which a plan asks for RAS+ orientation, whatever that of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A caller's array as a reader would have given it, and the way back.

    Attributes:
        volume: (C, Z, Y, X).
        order: the caller's spatial axis behind each of the volume's.
        flipped: the volume's axes that run against the caller's.
        shape: of the caller's grid.
    """

    volume: Volume
    order: tuple[int, ...]
    flipped: tuple[int, ...]
    shape: tuple[int, ...]

    def back(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array (..., Z, Y, X) on the caller's grid, in its axis order."""
        lead = array.ndim - len(self.order)
        turned = np.flip(array, tuple(lead + axis for axis in self.flipped))
        inverse = np.argsort(self.order)
        ordered = turned.transpose(*range(lead), *(lead + int(axis) for axis in inverse))
        return np.ascontiguousarray(ordered.reshape(*ordered.shape[:lead], *self.shape))


def place(
    array: npt.NDArray[Any] | Tensor,
    *,
    num_channels: int,
    reader: str,
    spacing: Sequence[float] | None = None,
    affine: npt.ArrayLike | None = None,
) -> Placed:
    """Return an array as the plan's reader would have read it from a file.

    Args:
        array: (S) or (C, *S), two or three spatial axes. Without an affine its axes are taken as readers give them,
            (Z, Y, X); with one they are those of the affine, (X, Y, Z) as nibabel loads them.
        num_channels: that the model was trained with.
        reader: the plan's; one that reorients needs the affine.
        spacing: extent of a voxel along each spatial axis of the array, in mm; the affine's by default.
        affine: (4, 4) from voxel indices to RAS+ mm, as nibabel has it.

    Raises:
        ImageError: shape, spacing, affine and model do not fit together.
    """
    values = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array)
    matrix = None if affine is None else _checked_affine(affine)
    if spacing is None:
        if matrix is None:
            raise ImageError("an array has no spacing of its own; give spacing= in the order of its axes, or affine=")
        spacing = [float(extent) for extent in np.linalg.norm(matrix[:3, :3], axis=0)]
    dims = len(spacing)
    if dims not in (2, 3) or (matrix is not None and dims != 3):
        raise ImageError(f"spacing {list(spacing)}: expected two or three numbers, three with an affine")
    if not all(np.isfinite(extent) and extent > 0 for extent in spacing):
        raise ImageError(f"spacing {list(spacing)}: expected positive numbers, in mm")
    if values.ndim == dims:
        values = values[None]
    if values.ndim != dims + 1 or len(values) != num_channels:
        raise ImageError(
            f"array of shape {tuple(np.shape(array))} with {dims} spacings: expected {dims} spatial axes"
            + (f" behind {num_channels} channels" if num_channels > 1 else ", or one channel before them")
        )
    shape = tuple(values.shape[1:])
    spacings = [float(extent) for extent in spacing]
    if dims == 2:
        values, spacings = values[:, None], [max(spacings) * FLAT_SPACING_FACTOR, *spacings]
    order, flipped = _layout(matrix, reader)
    found = values.transpose(0, *(axis + 1 for axis in order))
    found = np.flip(found, tuple(axis + 1 for axis in flipped))
    ordered = tuple(spacings[axis] for axis in order)
    volume = Volume(
        array=np.ascontiguousarray(found, dtype=np.float32),
        spacing=(ordered[0], ordered[1], ordered[2]),
        properties={"reader": reader, "spacing": list(ordered)},
    )
    return Placed(volume=volume, order=order, flipped=flipped, shape=shape)


def _layout(affine: npt.NDArray[np.float64] | None, reader: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the caller's axis behind each of (Z, Y, X), and which of these run the other way."""
    if affine is None:
        if reader in REORIENTING_READERS:
            raise ImageError(
                f"the plan asks for RAS+ orientation ({reader}), which an array alone does not tell; give affine="
            )
        return (0, 1, 2), ()
    if reader not in REORIENTING_READERS:
        return (2, 1, 0), ()
    orientation = nibabel.io_orientation(affine)
    canonical = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]  # the caller's x, y, z
    order = tuple(reversed(canonical))
    return order, tuple(axis for axis, source in enumerate(order) if orientation[source, 1] < 0)


def _checked_affine(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise ImageError(f"affine of shape {matrix.shape}: expected a (4, 4) matrix that can be inverted")
    return matrix
