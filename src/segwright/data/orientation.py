"""How the axes of an image lie in the body, from its header alone; readers that turn every image to RAS+."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK

from segwright.core.errors import ConfigError

REORIENTING: Final = {"SimpleITKIO": "SimpleITKIOWithReorient", "NibabelIO": "NibabelIOWithReorient"}
"""The reader that does the same in RAS+."""


def reorienting(reader: str) -> str:
    """Return the reader that turns images to RAS+.

    Raises:
        ConfigError: the format tells no orientation.
    """
    if reader in REORIENTING.values():
        return reader
    if reader not in REORIENTING:
        raise ConfigError(f"images read by {reader} do not tell how they lie; leave --reorient out")
    return REORIENTING[reader]


def canonical_axes(file: Path, reader: str) -> tuple[int, ...]:
    """Return which axis of the array (Z, Y, X) of a file becomes each axis of the array in RAS+."""
    orientation = _orientation(file, reader)
    xyz = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    return tuple(2 - axis for axis in reversed(xyz))


def lateral_axis(file: Path, reader: str) -> tuple[int, bool] | None:
    """Return the axis of the array (Z, Y, X) that runs between left and right, and which way; None if untold."""
    if reader in REORIENTING.values():
        return 2, True
    if reader not in REORIENTING:
        return None
    orientation = _orientation(file, reader)
    along = int(np.flatnonzero(orientation[:, 0] == 0)[0])
    return 2 - along, bool(orientation[along, 1] > 0)


def _orientation(file: Path, reader: str) -> npt.NDArray[np.float64]:
    """Return nibabel's (3, 2) of the file's axes (X, Y, Z): the axis of the body, and its sign."""
    if reader == "NibabelIO":
        directions = np.asarray(nibabel.load(file).affine)[:3, :3]
    else:
        header = SimpleITK.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        directions = np.reshape(header.GetDirection(), (3, 3))  # LPS: other signs, the same for all files
    affine = np.eye(4)
    affine[:3, :3] = directions
    orientation: npt.NDArray[np.float64] = nibabel.io_orientation(affine)
    return orientation
