"""Slices of a volume as pictures: plane, sides and aspect ratio, from the geometry of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError, did_you_mean

AUTO: Final = "auto"
PLANES: Final = {"axial": ("AP", "RL"), "coronal": ("SI", "RL"), "sagittal": ("SI", "AP")}
"""Directions of the body from top to bottom and from left to right of a picture (radiological convention)."""

_ACROSS: Final = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "R": "sagittal", "L": "sagittal"}
"""Plane of slices that follow each other in a direction."""

_MIN_ANISOTROPY: Final = 1.5
"""Slices lie across the axis whose spacing is larger than the others by this factor, since others would look coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How slices of a volume (three axes) become pictures (rows, columns).

    Attributes:
        name: of the plane; empty if unknown.
        axis: of the volume, across the slices.
        axes: of the volume, along the rows and along the columns, as indices.
        flipped: whether each of them is flipped.
        letters: directions at the top, bottom, left and right; empty if unknown.
    """

    name: str
    axis: int
    axes: tuple[int, int]
    flipped: tuple[bool, bool] = (False, False)
    letters: str = ""

    def slice(self, volume: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """Return the picture (..., rows, columns) of a slice of a volume (..., *S)."""
        leading = volume.ndim - 3
        plane = volume.take(index, axis=leading + self.axis)
        if self.axes[0] > self.axes[1]:
            plane = plane.swapaxes(-1, -2)
        steps = (slice(None, None, -1 if flipped else 1) for flipped in self.flipped)
        picture: npt.NDArray[Any] = plane[(..., *steps)]
        return picture

    def size(self, shape: Sequence[int], spacing: Sequence[float], longest: int) -> tuple[int, int]:
        """Return height and width in pixels of pictures whose longer side has `longest` pixels."""
        height, width = (shape[axis] * spacing[axis] for axis in self.axes)
        scale = longest / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def require_plane(plane: str) -> None:
    """Require a plane or `auto`.

    Raises:
        ConfigError: it is neither.
    """
    if plane not in (AUTO, *PLANES):
        raise ConfigError(f"unknown plane '{plane}'{did_you_mean(plane, (AUTO, *PLANES))}")


def view_of(plane: str, *, shape: Sequence[int], spacing: Sequence[float], directions: str) -> View:
    """Return the view of a volume.

    Args:
        plane: one of `PLANES`, or `auto`: across an axis of one voxel, else across the one with by far the largest
            spacing, else axial.
        shape: of the volume.
        spacing: of its axes.
        directions: that its axes lead to, three letters; empty if unknown.

    Raises:
        ConfigError: a plane is wanted, and the directions are unknown.
    """
    if plane != AUTO and not directions:
        raise ConfigError(
            f"the {plane} plane is unknown, since the file is 2D, oblique or stores no orientation; leave --plane out"
        )
    if not directions:
        axis = _slice_axis(shape, spacing, default=0)
        rows, columns = (other for other in range(3) if other != axis)
        return View(name="", axis=axis, axes=(rows, columns))
    across = [_ACROSS[letter] for letter in directions]
    axis = _slice_axis(shape, spacing, default=across.index("axial")) if plane == AUTO else across.index(plane)
    shown = PLANES[across[axis]]
    rows, columns = (next(axis for axis, letter in enumerate(directions) if letter in pair) for pair in shown)
    return View(
        name=across[axis],
        axis=axis,
        axes=(rows, columns),
        flipped=(directions[rows] != shown[0][1], directions[columns] != shown[1][1]),
        letters="".join(shown),
    )


def _slice_axis(shape: Sequence[int], spacing: Sequence[float], *, default: int) -> int:
    flat = [axis for axis, extent in enumerate(shape) if extent == 1]
    if flat:
        return default if default in flat else flat[0]
    coarsest = int(np.argmax(spacing))
    others = [step for axis, step in enumerate(spacing) if axis != coarsest]
    return coarsest if spacing[coarsest] > _MIN_ANISOTROPY * max(others) else default
