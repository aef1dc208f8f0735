"""Anatomical orientation of an image, from its header; readers that re-orient every image to RAS+."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError
from segwright.data.images.formats import Header
from segwright.data.images.image_io import read_header

REORIENTING: Final = {"SimpleITKIO": "SimpleITKIOWithReorient", "NibabelIO": "NibabelIOWithReorient"}
"""The corresponding reader that re-orients to RAS+."""

_LATERAL_AXIS_OF_RAS: Final = (2, True)


def reorienting_reader(reader: str) -> str:
    """Return the reader that re-orients images to RAS+.

    Raises:
        ConfigError: the format stores no orientation.
    """
    if reader in REORIENTING.values():
        return reader
    if reader not in REORIENTING:
        raise ConfigError(f"images read by {reader} store no orientation; leave --reorient out")
    return REORIENTING[reader]


def canonical_axes(file: Path, reader: str) -> tuple[int, ...]:
    """Return for each axis of the array in RAS+ the axis of the file's array (Z, Y, X).

    Raises:
        ConfigError: the file is not a 3D image with one channel, as readers that re-orient need.
        ImageError: the file cannot be read.
    """
    header = read_header(file, reader)
    orientation = _orientation(header)
    if orientation is None or header.num_channels > 1:
        what = "stores no 3D orientation" if orientation is None else f"holds {header.num_channels} channels"
        raise ConfigError(f"{file}: {what}; only 3D images of one channel can be re-oriented; leave --reorient out")
    xyz = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    return tuple(2 - axis for axis in reversed(xyz))


def lateral_axis(file: Path, reader: str) -> tuple[int, bool] | None:
    """Return the axis of the array (Z, Y, X) that runs between left and right, and the sign of its direction.

    Signs are comparable between files of one reader only. The result is None for files without orientation, and for 2D
    images, whose axes may be any two of the body.

    Raises:
        ImageError: the file cannot be read.
    """
    if reader not in REORIENTING:
        return _LATERAL_AXIS_OF_RAS if reader in REORIENTING.values() else None
    return _lateral_axis(read_header(file, reader))


def left_axis(header: Header, reader: str) -> tuple[int, bool] | None:
    """Return the axis of the array (Z, Y, X) between left and right, and whether it runs to the patient's left.

    None as for `lateral_axis`.
    """
    if reader in REORIENTING.values():
        axis, to_right = _LATERAL_AXIS_OF_RAS
        return axis, not to_right
    found = _lateral_axis(header) if reader in REORIENTING else None
    if found is None:
        return None
    axis, is_positive = found
    return axis, is_positive != ("affine" in header.geometry)  # RAS+ runs to the right, ITK's LPS to the left


def orientation_code(properties: Mapping[str, Any]) -> str | None:
    """Return the anatomical directions of the three axes of a file (LPS, RAS, ...), None if it does not store them."""
    geometry = properties.get("geometry", {})
    if geometry.get("direction") is not None and len(geometry["direction"]) == 9:
        matrix = np.array(geometry["direction"], dtype=float).reshape(3, 3)
        names = (("R", "L"), ("A", "P"), ("I", "S"))  # ITK: to the left, back and head
    elif geometry.get("affine") is not None:
        matrix = np.array(geometry["affine"], dtype=float)[:3, :3]
        names = (("L", "R"), ("P", "A"), ("I", "S"))
    else:
        return None
    strongest = np.abs(matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-12)).argmax(axis=0)
    return "".join(names[row][int(matrix[row, column] > 0)] for column, row in enumerate(strongest))


def _lateral_axis(header: Header) -> tuple[int, bool] | None:
    """Return the axis (Z, Y, X) between left and right, and the sign of its direction; None without orientation."""
    orientation = _orientation(header)
    if orientation is None:
        return None
    along = int(np.flatnonzero(orientation[:, 0] == 0)[0])
    return 2 - along, bool(orientation[along, 1] > 0)


def _orientation(header: Header) -> npt.NDArray[np.float64] | None:
    """Return nibabel's orientation (3, 2), body axis and sign of each axis X, Y, Z of the file; None if unknown."""
    affine = np.eye(4)
    if "affine" in header.geometry:
        affine[:3, :3] = np.asarray(header.geometry["affine"])[:3, :3]
    elif np.size(header.geometry["direction"]) == 9:
        # LPS instead of RAS+: other signs, but the same for all files of a reader
        affine[:3, :3] = np.reshape(header.geometry["direction"], (3, 3))
    else:
        return None
    orientation: npt.NDArray[np.float64] = nibabel.io_orientation(affine)
    return orientation if np.isfinite(orientation).all() else None
