"""Metrics of one class that need its masks: surface distances and lesion-wise metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.data.images.formats import FLAT_SPACING_FACTOR
from segwright.data.labels import ClassKey
from segwright.evaluation.lesions import compare_lesions
from segwright.evaluation.surface import surface_distances

Mask = npt.NDArray[np.bool_]

_ABOUT_ONE = 1 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraMetrics:
    """Metrics to compute beside the overlap.

    Attributes:
        surface: HD, HD95, ASSD and NSD, see `evaluation.surface`.
        lesions: detection and panoptic quality, see `evaluation.lesions`.
        tolerances: of the NSD, in mm.
    """

    surface: bool = False
    lesions: bool = False
    tolerances: tuple[float, ...] = (1.0, 2.0)


def class_mask(label_map: npt.NDArray[Any], key: ClassKey) -> Mask:
    """Return the mask of a label or region in a label map (*S); many times as fast as `np.isin`."""
    values = (key,) if isinstance(key, int) else key
    masks: list[Mask] = [label_map == value for value in values]
    return reduce(np.logical_or, masks, np.zeros_like(label_map, dtype=bool)) if len(masks) != 1 else masks[0]


def measure_masks(reference: Mask, prediction: Mask, spacing: Sequence[float], extra: ExtraMetrics) -> dict[str, float]:
    """Compute the metrics of `extra` for two masks (*S).

    A flat image is measured in its plane: along an axis of one voxel there are no neighbours, so all voxels would be
    surface.
    """
    values: dict[str, float] = {}
    if extra.surface:
        axes = [axis for axis, size in enumerate(reference.shape) if size > 1] or [reference.ndim - 1]
        flat = tuple(slice(None) if axis in axes else 0 for axis in range(reference.ndim))
        distances = surface_distances(
            reference[flat], prediction[flat], [spacing[axis] for axis in axes], tolerances=extra.tolerances
        )
        values |= {"HD": distances.hausdorff, "HD95": distances.hausdorff_95, "ASSD": distances.mean}
        values |= {f"NSD_{tolerance:g}mm": distances.surface_dice(tolerance) for tolerance in extra.tolerances}
    if extra.lesions:
        lesions = compare_lesions(reference, prediction)
        values |= {"Lesion_F1": lesions.f1, "Lesion_recall": lesions.recall, "Lesion_precision": lesions.precision}
        values |= {"PQ": lesions.panoptic_quality}
    return values


def has_volume(shape: Sequence[int], spacing: Sequence[float]) -> bool:
    """Whether voxels have a volume: the readers of flat images invent a spacing for the missing axis."""
    made_up = len(shape) == 3 and shape[0] == 1 and spacing[0] >= _ABOUT_ONE * FLAT_SPACING_FACTOR * max(spacing[1:])
    return not made_up
