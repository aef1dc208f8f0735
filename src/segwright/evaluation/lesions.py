"""Lesion-wise metrics: detection and panoptic quality of connected components (26-connected in 3D).

Empty masks: all measures are NaN where both masks are empty, and 0 where one is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]

MATCH_IOU = 0.5
"""Above this overlap a pair of components matches, and no component has two partners (Kirillov et al. 2019)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesions:
    """Numbers of components of a reference and a predicted mask, and of those that overlap a component of the other."""

    reference: int
    predicted: int
    found: int
    true: int
    ious: tuple[float, ...]
    """IoU of the matching pairs."""

    @property
    def recall(self) -> float:
        """Share of the reference's components that some prediction overlaps."""
        return self._share(self.found, self.reference)

    @property
    def precision(self) -> float:
        """Share of the predicted components that overlap the reference."""
        return self._share(self.true, self.predicted)

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision."""
        if not self.reference and not self.predicted:
            return float("nan")
        total = self.recall + self.precision
        return 2 * self.recall * self.precision / total if total else 0.0

    @property
    def panoptic_quality(self) -> float:
        """Sum of the matching pairs' IoU over TP + FP / 2 + FN / 2 (Kirillov et al. 2019)."""
        if not self.reference and not self.predicted:
            return float("nan")
        return sum(self.ious) / (0.5 * (self.reference + self.predicted))

    def _share(self, part: int, whole: int) -> float:
        if whole:
            return part / whole
        return 0.0 if self.reference or self.predicted else float("nan")


def compare_lesions(reference: Mask, prediction: Mask) -> Lesions:
    """Match the components of two masks (*S)."""
    structure = np.ones((3,) * reference.ndim, dtype=bool)
    first, num_first = ndimage.label(reference, structure)
    second, num_second = ndimage.label(prediction, structure)
    both = (first > 0) & (second > 0)
    pairs, counts = np.unique(np.stack([first[both], second[both]]), axis=1, return_counts=True)
    sizes = np.bincount(first.reshape(-1)), np.bincount(second.reshape(-1))
    ious = [
        float(count / (sizes[0][one] + sizes[1][two] - count))
        for (one, two), count in zip(pairs.T, counts, strict=True)
    ]
    return Lesions(
        reference=int(num_first),
        predicted=int(num_second),
        found=len(np.unique(pairs[0])),
        true=len(np.unique(pairs[1])),
        ious=tuple(iou for iou in ious if iou > MATCH_IOU),
    )
