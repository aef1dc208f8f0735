"""Where a voxel grid lies in space."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Shape and spacing of a volume in array axis order (slice, row, column for medical formats).

    `origin` and `direction` are kept as the file format gives them (ITK index order) and are only handed back to it.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()
