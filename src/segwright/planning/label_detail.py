"""Measure how much of the labels a coarser spacing keeps: the Dice of structures against their coarse copies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import find_objects
from torch.nn.functional import interpolate

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Factors on the target spacing that are measured."""

MARGIN = 8
"""Voxels around a structure that are resampled with it."""

Spacing = Sequence[float]


def kept_dice(cases: Iterable[tuple[npt.NDArray[np.integer], Spacing]], spacing: Spacing) -> dict[float, float]:
    """Return for each of `FACTORS` the mean Dice, over structures and cases, of what a coarser grid can show.

    A structure is stored as the share of each coarse voxel that it fills, as a good network would predict it, and
    interpolated linearly back to its own grid, as predictions are.

    Args:
        cases: label maps (Z, Y, X) in the plan's axis order, and their spacing.
        spacing: target spacing of the last 2 or 3 axes; the factors apply to these.
    """
    dice: dict[float, dict[int, list[float]]] = {factor: defaultdict(list) for factor in FACTORS}
    for label, case_spacing in cases:
        kept = len(case_spacing) - len(spacing)
        for value, box in enumerate(find_objects(label), start=1):
            if box is None:
                continue
            structure = label[tuple(slice(max(0, edge.start - MARGIN), edge.stop + MARGIN) for edge in box)] == value
            for factor in FACTORS:
                ratios = (*(1.0,) * kept, *map(_ratio, case_spacing[kept:], [factor * each for each in spacing]))
                shape = [max(1, round(size * ratio)) for size, ratio in zip(structure.shape, ratios, strict=True)]
                dice[factor][value].append(_dice_of_copy(structure, shape))
    return {
        factor: float(np.mean([np.mean(values) for values in found.values()])) if found else math.nan
        for factor, found in dice.items()
    }


def coarsest_factor(kept: Mapping[float, float], least: float) -> float:
    """Return the largest factor up to which at least the share `least` of the Dice at factor 1 is kept."""
    largest = 1.0
    for factor in sorted(kept):
        if not kept[factor] >= least * kept[1.0]:
            break
        largest = factor
    return largest


def _ratio(old: float, new: float) -> float:
    return old / new


def _dice_of_copy(structure: npt.NDArray[np.bool_], coarse: Sequence[int]) -> float:
    volume = torch.from_numpy(structure).float()
    copy = _resized(_resized(volume, coarse), structure.shape).numpy() > 0.5
    voxels = np.count_nonzero(structure) + np.count_nonzero(copy)
    return 2 * float(np.count_nonzero(structure & copy)) / float(voxels)


def _resized(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resize (Z, Y, X) linearly; an axis that becomes shorter is averaged."""
    planes = interpolate(volume[:, None], size=tuple(shape[1:]), mode="bilinear", antialias=True)[:, 0]
    if len(planes) == shape[0]:
        return planes
    columns = planes.movedim(1, 0)[:, None]
    return interpolate(columns, size=(shape[0], shape[2]), mode="bilinear", antialias=True)[:, 0].movedim(0, 1)
