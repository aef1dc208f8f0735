"""Surface distances of two masks, in mm: Hausdorff distance, ASSD, normalised surface Dice.

A voxel of a mask is on its surface if one of its face neighbours, or the space beyond the image, is outside the mask.
The distance of two surface voxels is that of their centres. (Conventions of MONAI and Metrics Reloaded, Maier-Hein
et al. 2024; DeepMind's surface-distance weighs surface elements by their area instead.)

Empty masks: all measures are NaN where both masks are empty. Where one is, distances are infinite and the normalised
surface Dice is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]
Points = npt.NDArray[np.int64]  # (n, axes)

PERCENTILE = 95.0

_LEAF = 64
"""Points in a leaf of the search tree: twice as fast as scipy's default of 10 for surfaces far apart."""

_ROUNDING = 1e-9
"""Relative tolerance, far above rounding errors and far below the resolution of any scanner."""

_SLAB = 1 << 19
"""Voxels that are compared with their neighbours at once."""


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest of the other, both ways, in mm."""

    to_second: Distances
    to_first: Distances

    @property
    def hausdorff(self) -> float:
        """The largest of all distances."""
        return self._larger(lambda distances: float(distances.max()))

    @property
    def hausdorff_95(self) -> float:
        """The larger of both ways' 95th percentiles, interpolated linearly."""
        return self._larger(lambda distances: float(np.percentile(distances, PERCENTILE)))

    @property
    def mean(self) -> float:
        """The mean over the voxels of both surfaces (average symmetric surface distance)."""
        if self._is_nan or self._is_infinite:
            return float("nan") if self._is_nan else float("inf")
        total = float(self.to_second.sum() + self.to_first.sum())
        return total / (len(self.to_second) + len(self.to_first))

    def surface_dice(self, tolerance: float) -> float:
        """The share of both surfaces that is at most `tolerance` mm from the other one (Nikolov et al. 2018)."""
        if self._is_nan:
            return float("nan")
        if self._is_infinite:
            return 0.0
        close = int((self.to_second <= tolerance).sum() + (self.to_first <= tolerance).sum())
        return close / (len(self.to_second) + len(self.to_first))

    @property
    def _is_nan(self) -> bool:
        return not len(self.to_second) and not len(self.to_first)

    @property
    def _is_infinite(self) -> bool:
        return bool(len(self.to_second)) != bool(len(self.to_first))

    def _larger(self, measure: Callable[[Distances], float]) -> float:
        if self._is_nan or self._is_infinite:
            return float("nan") if self._is_nan else float("inf")
        return float(max(measure(self.to_second), measure(self.to_first)))


def surface_distances(
    first: Mask, second: Mask, spacing: Sequence[float], *, tolerances: Sequence[float] = ()
) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks (*S) with voxels of `spacing` mm along each axis.

    Args:
        first: one mask.
        second: the other.
        spacing: mm along each axis.
        tolerances: with which distances will be compared, in mm; distances within rounding of one are recomputed.
    """
    box = _common_box(first, second)
    if box is None:
        return SurfaceDistances(np.zeros(0), np.zeros(0))
    indices = [_surface_indices(mask[box]) for mask in (first, second)]
    if not len(indices[0]) or not len(indices[1]):
        one, two = (np.full(len(part), np.inf) for part in indices)
        return SurfaceDistances(one, two)
    shape = first[box].shape
    one, two = (np.stack(np.unravel_index(part, shape), axis=1) for part in indices)
    apart = [~np.isin(part, other, assume_unique=True) for part, other in (indices, indices[::-1])]
    scale = np.asarray(spacing, dtype=np.float64)
    return SurfaceDistances(
        _nearest(one, two, apart[0], scale, tolerances), _nearest(two, one, apart[1], scale, tolerances)
    )


def _common_box(first: Mask, second: Mask) -> tuple[slice, ...] | None:
    """Return the smallest box that holds both masks; None where both are empty."""
    box: list[slice] = []
    for axis in range(first.ndim):
        # The arrays shrink along the axes already done, and the current axis comes first: two cheap passes.
        parts = [np.moveaxis(mask[tuple(box)], axis, 0) for mask in (first, second)]
        hit = [part.any(axis=tuple(range(1, part.ndim))) for part in parts]
        filled = np.flatnonzero(hit[0] | hit[1])
        if not len(filled):
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _surface_indices(mask: Mask) -> npt.NDArray[np.int64]:
    """Return the flat indices of the voxels on the surface of a mask, in their order."""
    indices = []
    row = int(np.prod(mask.shape[1:], dtype=np.int64))
    step = max(1, _SLAB // max(row, 1))  # a slab stays in the cache while its neighbours are compared
    for start in range(0, len(mask), step):
        part = mask[start : start + step]
        inner = part.copy()
        inner[1:] &= part[:-1]
        inner[:-1] &= part[1:]
        inner[0] &= mask[start - 1] if start else False
        inner[-1] &= mask[start + step] if start + step < len(mask) else False
        for axis in range(1, mask.ndim):
            moved, whole = np.moveaxis(inner, axis, 0), np.moveaxis(part, axis, 0)
            moved[1:] &= whole[:-1]
            moved[:-1] &= whole[1:]
            moved[0] = moved[-1] = False
        indices.append(np.flatnonzero(part > inner) + start * row)
    return np.concatenate(indices)


def _nearest(
    points: Points, others: Points, apart: npt.NDArray[np.bool_], scale: Distances, tolerances: Sequence[float]
) -> Distances:
    """Return the distance of each point (n, axes) to the nearest of the others, 0 where they are not `apart`.

    The tree finds the nearest point, but its distance is computed from voxel indices: that of scaled coordinates has
    rounding errors, which could put a distance equal to a tolerance above it. Equally near points may still round up or
    down, so a distance just above a tolerance is replaced by the smallest to any point that near.
    """
    result = np.zeros(len(points))
    if not apart.any():
        return result
    queries = points[apart]
    tree = KDTree(others * scale, leafsize=_LEAF, balanced_tree=False, compact_nodes=False)
    _, index = tree.query(queries * scale)
    distances = _lengths(queries - others[index], scale)
    for tolerance in tolerances:
        for missed in np.flatnonzero((distances > tolerance) & (distances <= tolerance * (1 + _ROUNDING))):
            near = tree.query_ball_point(queries[missed] * scale, tolerance * (1 + 2 * _ROUNDING))
            distances[missed] = _lengths(queries[missed] - others[near], scale).min()
    result[apart] = distances
    return result


def _lengths(offsets: Points, scale: Distances) -> Distances:
    lengths: Distances = np.sqrt(((offsets * scale) ** 2).sum(axis=1))
    return lengths
