"""Overlap metrics of two label maps: one confusion matrix for all labels; regions are unions of labels.

Empty masks: Dice and IoU are NaN if a class is in neither map, and 0 if it is in only one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError
from segwright.data.label_maps import distinct_values
from segwright.data.labels import ClassKey

_DIRECT_VALUES = 256
"""Label values below this index the confusion matrix directly; larger ones are renumbered first."""
_MAX_VALUES = 2048
"""Size of the largest confusion matrix, 32 MiB; no dataset has as many labels."""

_BLOCK = 1 << 20
"""Voxels that are counted at once, to avoid a copy of the whole case in a wider type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Voxel counts of one class in one case."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN where the class is in neither map."""
        union = self.tp + self.fp + self.fn
        return 2 * self.tp / (union + self.tp) if union else float("nan")

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); NaN where the class is in neither map."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else float("nan")

    @property
    def precision(self) -> float:
        """TP / (TP + FP); NaN where the class is not predicted."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else float("nan")

    @property
    def recall(self) -> float:
        """TP / (TP + FN); NaN where the class is not in the reference."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Voxels by (reference value, predicted value); ignored voxels left out."""

    values: tuple[int, ...]
    counts: npt.NDArray[np.int64]  # (values, values): reference by prediction

    def overlap(self, key: ClassKey) -> Overlap:
        """Return the counts of one label, or of the union of several."""
        inside = np.isin(self.values, key)
        true_positives = int(self.counts[np.ix_(inside, inside)].sum())
        predicted = int(self.counts[:, inside].sum())
        present = int(self.counts[inside].sum())
        total = int(self.counts.sum())
        return Overlap(
            tp=true_positives,
            fp=predicted - true_positives,
            fn=present - true_positives,
            tn=total - predicted - present + true_positives,
        )


def confusion(
    reference: npt.NDArray[np.integer], prediction: npt.NDArray[np.integer], *, ignore_label: int | None = None
) -> Confusion:
    """Count every pair of reference and predicted value once; both arrays (*S) have the same shape.

    Voxels whose reference is `ignore_label` are left out of all counts (nnU-Net behaviour 12.1).

    Raises:
        ImageError: the maps have too many different values.
    """
    assert reference.shape == prediction.shape, "shapes are checked where files are read"
    first, second = reference.reshape(-1), prediction.reshape(-1)
    if not first.size:
        return Confusion(values=(), counts=np.zeros((0, 0), dtype=np.int64))
    lowest, highest = min(first.min(), second.min()), max(first.max(), second.max())
    is_direct = lowest >= 0 and highest < _DIRECT_VALUES
    values = tuple(range(int(highest) + 1)) if is_direct else _values(first, second)
    known, counts = np.array(values), np.zeros(len(values) ** 2, dtype=np.int64)
    for start in range(0, first.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        one, two = (part[block] if is_direct else np.searchsorted(known, part[block]) for part in (first, second))
        counts += np.bincount(one.astype(np.int64) * len(values) + two, minlength=len(counts))
    matrix = counts.reshape(len(values), len(values))
    if ignore_label in values:
        matrix[values.index(ignore_label)] = 0
    return Confusion(values=values, counts=matrix)


def _values(*arrays: npt.NDArray[np.integer]) -> tuple[int, ...]:
    """Return the distinct values of label maps, ascending.

    Raises:
        ImageError: there are too many.
    """
    values = sorted(set().union(*(distinct_values(array) for array in arrays)))
    if len(values) > _MAX_VALUES:
        raise ImageError(
            f"label maps with {len(values)} different values, expected at most {_MAX_VALUES}; is one of them an image?"
        )
    return tuple(values)


def overlaps(
    reference: npt.NDArray[np.integer],
    prediction: npt.NDArray[np.integer],
    keys: Sequence[ClassKey],
    *,
    ignore_label: int | None = None,
) -> Mapping[ClassKey, Overlap]:
    """Return the counts of every label or region in `keys`."""
    matrix = confusion(reference, prediction, ignore_label=ignore_label)
    return {key: matrix.overlap(key) for key in keys}
