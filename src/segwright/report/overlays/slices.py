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
    present = areas[areas.any(axis=1)]
    if not len(present):
        return tuple(sorted({round((index + 1) * (depth - 1) / (count + 1)) for index in range(count)}))
    labelled = np.flatnonzero(present.any(axis=0))
    sizes = np.sqrt(present[:, labelled])
    weights = sizes / sizes.sum(axis=1, keepdims=True)
    shown = sizes / sizes.max(axis=1, keepdims=True)
    distances = np.abs(labelled[:, None] - labelled)
    reaches = [np.ptp(labelled[row > 0]) / 2 + _MIN_REACH for row in sizes]

    def represented(index: int) -> npt.NDArray[np.float64]:
        """Return how well each slice (columns) is represented by each slice (rows) for a class."""
        near = np.clip(1 - distances / reaches[index], 0, None)
        result: npt.NDArray[np.float64] = shown[index][:, None] * near
        return result

    best = np.zeros(sizes.shape)
    chosen: set[int] = set()
    for _ in range(min(count, len(labelled))):
        gains = np.zeros(len(labelled))
        for index in range(len(sizes)):
            gains += np.clip(represented(index) - best[index], 0, None) @ weights[index]
        added = int(gains.argmax())
        if gains[added] < _MIN_GAIN:
            break
        chosen.add(int(labelled[added]))
        for index in range(len(sizes)):
            best[index] = np.maximum(best[index], represented(index)[added])
    return tuple(sorted(chosen))
