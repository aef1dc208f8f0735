"""Distances between the surfaces of two masks, in mm.

A voxel of a mask is on its surface if one of its face neighbours is outside the mask; beyond the image is outside. The
distance of two surface voxels is that of their centres. (Conventions of MONAI and Metrics Reloaded, Maier-Hein et al.
2024; DeepMind's surface-distance weighs surface elements by their area instead.)

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

PERCENTILE = 95.0


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


def surface_distances(first: Mask, second: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks (*S) with voxels of `spacing` mm along each axis."""
    points = [_surface_points(mask) for mask in (first, second)]
    if not len(points[0]) or not len(points[1]):
        one, two = (np.full(len(part), np.inf) for part in points)
        return SurfaceDistances(one, two)
    scale = np.asarray(spacing, dtype=np.float64)
    there = [_keys(part, first.shape) for part in points]
    return SurfaceDistances(
        _nearest(points[0], points[1], there[0], there[1], scale),
        _nearest(points[1], points[0], there[1], there[0], scale),
    )


def _surface_points(mask: Mask) -> npt.NDArray[np.int64]:
    """Return the coordinates (n, axes) of the voxels on the surface of a mask, found in its bounding box alone."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        if not len(filled):
            return np.zeros((0, mask.ndim), dtype=np.int64)
        box.append((int(filled[0]), int(filled[-1]) + 1))
    part = mask[tuple(slice(low, high) for low, high in box)]
    inner = np.zeros_like(part)
    centre = tuple(slice(1, -1) for _ in range(part.ndim))
    inner[centre] = part[centre]
    for axis in range(part.ndim):
        for side in (slice(None, -2), slice(2, None)):
            neighbour = list(centre)
            neighbour[axis] = side
            inner[centre] &= part[tuple(neighbour)]
    points: npt.NDArray[np.int64] = np.argwhere(part & ~inner) + np.array([low for low, _ in box])
    return points


def _keys(points: npt.NDArray[np.int64], shape: Sequence[int]) -> npt.NDArray[np.int64]:
    keys: npt.NDArray[np.int64] = np.ravel_multi_index(tuple(points.T), tuple(shape))
    return keys


def _nearest(
    points: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    keys: npt.NDArray[np.int64],
    other_keys: npt.NDArray[np.int64],
    scale: Distances,
) -> Distances:
    """Return the distance of each point to the nearest of the others; those that coincide need no search."""
    result = np.zeros(len(points))
    apart = ~np.isin(keys, other_keys, assume_unique=True)
    if apart.any():
        tree = KDTree(others * scale, balanced_tree=False, compact_nodes=False)
        result[apart], _ = tree.query(points[apart] * scale)
    return result
