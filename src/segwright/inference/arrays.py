"""Convert arrays of any axis order and orientation to volumes, and results back to the array's grid."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import nibabel
import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError
from segwright.data.images.formats import FLAT_SPACING_FACTOR
from segwright.data.images.image_io import Volume
from segwright.data.images.intensities import clean_intensities
from segwright.inference.reliability.model import ReliabilityModel, log_warnings

if TYPE_CHECKING:
    from torch import Tensor

REORIENTING_READERS: Final = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
"""Readers that bring images to RAS+ orientation."""

_SAME_SPACING = 1e-3
"""Largest relative difference of a spacing and that of the affine: headers are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayVolume:
    """An array as a reader would have returned it, and how to map results back to the array's grid.

    Attributes:
        volume: (C, Z, Y, X).
        order: for each axis of the volume the array's spatial axis.
        flipped: the volume's axes that run against those of the array.
        shape: spatial shape of the array.
    """

    volume: Volume
    order: tuple[int, ...]
    flipped: tuple[int, ...]
    shape: tuple[int, ...]

    def restore(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Map an array (..., Z, Y, X) on the grid of the volume to that of the original array, in its axis order."""
        lead = array.ndim - len(self.order)
        unflipped = np.flip(array, tuple(lead + axis for axis in self.flipped))
        inverse = np.argsort(self.order)
        ordered = unflipped.transpose(*range(lead), *(lead + int(axis) for axis in inverse))
        return np.ascontiguousarray(ordered.reshape(*ordered.shape[:lead], *self.shape))


def to_volume(
    array: npt.NDArray[Any] | Tensor,
    *,
    num_channels: int,
    reader: str,
    spacing: Sequence[float] | None = None,
    affine: npt.ArrayLike | None = None,
) -> ArrayVolume:
    """Convert an array to the volume that the plan's reader would have read from a file.

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
    values = _checked_array(array)
    given = tuple(values.shape)
    matrix = None if affine is None else _checked_affine(affine)
    spacings = _checked_spacing(spacing, matrix)
    dims = len(spacings)
    if values.ndim == dims:
        values = values[None]
    if values.ndim != dims + 1 or len(values) != num_channels:
        raise ImageError(
            f"array of shape {given} with {dims} spacings: expected {dims} spatial axes"
            + (f" behind {num_channels} channels" if num_channels > 1 else ", or one channel before them")
        )
    if not values.size:
        raise ImageError(f"array of shape {given}: expected at least one voxel along every axis")
    shape = tuple(values.shape[1:])
    if dims == 2:
        values, spacings = values[:, None], [max(spacings) * FLAT_SPACING_FACTOR, *spacings]
    order, flipped = _layout(matrix, reader)
    voxels = values.transpose(0, *(axis + 1 for axis in order))
    voxels = np.flip(voxels, tuple(axis + 1 for axis in flipped))
    ordered = tuple(spacings[axis] for axis in order)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which raises an ImageError
        cleaned, notes = clean_intensities(np.ascontiguousarray(voxels, dtype=np.float32), "array")
    volume = Volume(
        array=cleaned,
        spacing=(ordered[0], ordered[1], ordered[2]),
        properties={"reader": reader, "spacing": list(ordered), **_geometry(matrix, reader)},
        notes=notes,
    )
    return ArrayVolume(volume=volume, order=order, flipped=flipped, shape=shape)


def warn_if_out_of_distribution(reliability: ReliabilityModel, array_volume: ArrayVolume) -> None:
    """Log what is unusual about an array, compared with the training cases."""
    log_warnings("array", reliability.findings(array_volume.volume))


def _geometry(affine: npt.NDArray[np.float64] | None, reader: str) -> dict[str, Any]:
    """Return the affine as a volume's property; nothing for an array without one, or one that is reoriented."""
    return {} if affine is None or reader in REORIENTING_READERS else {"geometry": {"affine": affine.tolist()}}


def _layout(affine: npt.NDArray[np.float64] | None, reader: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the array's axis for each of (Z, Y, X), and which of these are flipped."""
    if affine is None:
        if reader in REORIENTING_READERS:
            raise ImageError(
                f"the plan needs RAS+ orientation ({reader}), but an array has no orientation; give affine="
            )
        return (0, 1, 2), ()
    if reader not in REORIENTING_READERS:
        return (2, 1, 0), ()
    orientation = nibabel.io_orientation(affine)
    canonical = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]  # the array's axes of x, y, z
    order = tuple(reversed(canonical))
    return order, tuple(axis for axis, source in enumerate(order) if orientation[source, 1] < 0)


def _checked_array(array: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
    """Convert to a numpy array; raise an ImageError unless it holds real numbers."""
    try:
        torch, given = sys.modules.get("torch"), array  # a tensor is given by a program that imported it
        if torch is not None and isinstance(array, torch.Tensor):
            tensor = array.detach().cpu()
            given = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which numpy lacks
        values = np.asarray(given)
        if values.dtype == object:
            values = values.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ImageError(
            f"array of type {type(array).__name__} ({error}); expected numbers, as a numpy array or a torch tensor"
        ) from error
    if values.dtype.kind not in "biuf":
        more = "; give its magnitude or its real part" if values.dtype.kind == "c" else ""
        raise ImageError(f"array of {values.dtype}: expected integers or real numbers{more}")
    return values


def _checked_spacing(spacing: Sequence[float] | None, affine: npt.NDArray[np.float64] | None) -> list[float]:
    """Return the extent of a voxel along each axis of the array, mm."""
    own = None if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
    if spacing is None:
        if own is None:
            raise ImageError("an array has no spacing of its own; give spacing= in the order of its axes, or affine=")
        return [float(extent) for extent in own]
    expected = "expected two or three numbers, one for each axis in mm, such as (3.0, 0.8, 0.8)"
    try:
        given = np.asarray(spacing, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ImageError(f"spacing {spacing!r}: {expected}") from error
    if given.ndim != 1 or len(given) not in (2, 3) or (own is not None and len(given) != 3):
        raise ImageError(f"spacing {given.tolist()}: {expected}; three with an affine")
    if not (np.isfinite(given) & (given > 0)).all():
        raise ImageError(f"spacing {given.tolist()}: expected positive numbers, in mm")
    if own is not None and not np.allclose(given, own, rtol=_SAME_SPACING, atol=0):
        raise ImageError(
            f"spacing {given.tolist()} contradicts the affine, whose voxels are {own.round(4).tolist()} mm; give one "
            "of them, in the order of the array's axes"
        )
    return [float(extent) for extent in given]


def _checked_affine(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert to a matrix; raise an ImageError unless it can be inverted."""
    expected = "expected a (4, 4) matrix that can be inverted"
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ImageError(f"affine {affine!r}: {expected}") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise ImageError(f"affine of shape {matrix.shape}: {expected}")
    return matrix
