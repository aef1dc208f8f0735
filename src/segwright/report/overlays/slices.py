"""Choose the slices of a volume that show its classes best.

Legend: S the spatial axes of the files, K classes, Z slices.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_MIN_REACH: Final = 2.0
"""Slices up to which a class of one slice would be represented; half of the extent is added."""
_MIN_GAIN: Final = 1e-6
"""Of a further slice; rounding errors are smaller."""


def class_areas(positions: npt.NDArray[np.integer[Any]], num_classes: int, axis: int) -> Counts:
    """Count the voxels of each class in every slice across an axis, as (K, Z).

    Args:
        positions: (*S), the number of each voxel's class, from 1; 0 and numbers above K are in no class.
        num_classes: K.
        axis: across the slices.
    """
    slices = np.moveaxis(positions, axis, 0)
    counts = [
        np.bincount(plane.reshape(-1), minlength=num_classes + 1)[1 : num_classes + 1] for plane in np.asarray(slices)
    ]
    return np.stack(counts, axis=1).astype(np.int64)


def choose_slices(areas: Counts, count: int) -> tuple[int, ...]:
    """Return up to `count` slices, ascending, that show all classes well; spread evenly if there is no class.

    A slice represents another one of a class the better, the closer it lies, and the larger the class is in it. Slices
    that represent most are added one by one (greedy facility location), until nothing more is gained. Classes count the
    same, whatever their size; areas are compared by their square roots, as diameters.

    Args:
        areas: (K, Z), voxels of each class in every slice.
        count: of slices.

    >>> large, small = [4, 9, 9, 9, 9, 4, 0, 0], [0, 0, 0, 0, 0, 1, 2, 0]
    >>> choose_slices(np.array([large, small]), 2)
    (2, 5)
    """
    depth = areas.shape[1]
    classes = [_SlicesOfClass(row) for row in areas if row.any()]
    if not classes:
        return tuple(sorted({round((index + 1) * (depth - 1) / (count + 1)) for index in range(count)}))
    chosen: list[int] = []
    while len(chosen) < count:
        gains = np.zeros(depth)
        for each in classes:
            gains[each.slices] += each.gains()
        added = int(gains.argmax())
        if gains[added] < _MIN_GAIN:
            break
        chosen.append(added)
        for each in classes:
            each.add(added)
    return tuple(sorted(chosen))


class _SlicesOfClass:
    """The slices that show a class, and how well the chosen ones represent them."""

    def __init__(self, areas: Counts) -> None:
        self.slices = np.flatnonzero(areas)
        sizes = np.sqrt(areas[self.slices])
        self._weights = sizes / sizes.sum()
        self._shown = sizes / sizes.max()
        self._best = np.zeros(len(sizes))

    def gains(self) -> npt.NDArray[np.float64]:
        """Return how much better the class is represented if one of its slices is added, for each of them."""
        similar = self._shown[:, None] * self._closeness(self.slices[:, None])
        gains: npt.NDArray[np.float64] = np.clip(similar - self._best, 0, None) @ self._weights
        return gains

    def add(self, index: int) -> None:
        """Add a slice, if it shows the class."""
        (place,) = np.nonzero(self.slices == index)
        if len(place):
            self._best = np.maximum(self._best, self._shown[place[0]] * self._closeness(index))

    def _closeness(self, index: Any) -> npt.NDArray[np.float64]:
        reach = np.ptp(self.slices) / 2 + _MIN_REACH
        closeness: npt.NDArray[np.float64] = np.clip(1 - np.abs(index - self.slices) / reach, 0, None)
        return closeness
