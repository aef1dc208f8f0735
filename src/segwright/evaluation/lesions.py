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
    """Connected components of a reference and a predicted mask.

    Attributes:
        num_reference: components of the reference.
        num_predicted: components of the prediction.
        num_detected: components of the reference that overlap the prediction.
        num_correct: components of the prediction that overlap the reference.
        ious: IoU of the matching pairs, those above `MATCH_IOU`.
    """

    num_reference: int
    num_predicted: int
    num_detected: int
    num_correct: int
    ious: tuple[float, ...]

    @property
    def recall(self) -> float:
        """Share of the reference's components that some prediction overlaps."""
        return self._share(self.num_detected, self.num_reference)

    @property
    def precision(self) -> float:
        """Share of the predicted components that overlap the reference."""
        return self._share(self.num_correct, self.num_predicted)

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision."""
        if not self.num_reference and not self.num_predicted:
            return float("nan")
        total = self.recall + self.precision
        return 2 * self.recall * self.precision / total if total else 0.0

    @property
    def panoptic_quality(self) -> float:
        """Sum of the matching pairs' IoU over TP + FP / 2 + FN / 2 (Kirillov et al. 2019)."""
        if not self.num_reference and not self.num_predicted:
            return float("nan")
        return sum(self.ious) / (0.5 * (self.num_reference + self.num_predicted))

    def _share(self, part: int, whole: int) -> float:
        if whole:
            return part / whole
        return 0.0 if self.num_reference or self.num_predicted else float("nan")


def compare_lesions(reference: Mask, prediction: Mask) -> Lesions:
    """Count and match the components of two masks (*S)."""
    structure = np.ones((3,) * reference.ndim, dtype=bool)
    true, num_reference = ndimage.label(reference, structure)
    predicted, num_predicted = ndimage.label(prediction, structure)
    both = (true > 0) & (predicted > 0)
    pairs, counts = np.unique(np.stack([true[both], predicted[both]]), axis=1, return_counts=True)
    true_sizes, predicted_sizes = np.bincount(true.reshape(-1)), np.bincount(predicted.reshape(-1))
    ious = [
        float(count / (true_sizes[one] + predicted_sizes[two] - count))
        for (one, two), count in zip(pairs.T, counts, strict=True)
    ]
    return Lesions(
        num_reference=int(num_reference),
        num_predicted=int(num_predicted),
        num_detected=len(np.unique(pairs[0])),
        num_correct=len(np.unique(pairs[1])),
        ious=tuple(iou for iou in ious if iou > MATCH_IOU),
    )
