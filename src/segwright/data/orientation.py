"""How the axes of an image lie in the body, from its header alone; readers that turn every image to RAS+."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import nibabel
import numpy as np
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
    if reader == "NibabelIO":
        directions = np.asarray(nibabel.load(file).affine)[:3, :3]
    else:
        header = SimpleITK.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        directions = np.reshape(header.GetDirection(), (3, 3))  # LPS, whose signs don't matter here
    affine = np.eye(4)
    affine[:3, :3] = directions
    orientation = nibabel.io_orientation(affine)
    xyz = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    return tuple(2 - axis for axis in reversed(xyz))
