"""Measure where a predicted case is wrong: Dice by thirds of its slices, and the contrast of each class.

Legend: S the spatial axes of the files, K classes (labels or regions), V label values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy

from segwright.core.boxes import Box
from segwright.core.errors import SegwrightError
from segwright.data.labels import ClassKey
from segwright.evaluation.masks import class_mask
from segwright.evaluation.scores import Scores, class_key
from segwright.report.case_images import CaseImages, ImageSources, load_case

logger = getLogger(__name__)

UNKNOWN_ENDS: Final = ("first", "last")
_ENDS: Final = {"S": ("lower", "upper"), "A": ("posterior", "anterior"), "L": ("right", "left")}
"""Names of the first and the last third along an axis that runs to the head, to the front, or to the left."""
_OPPOSITE: Final = {"I": "S", "P": "A", "R": "L"}

_MIN_SLICES = 3
_MARGIN = 2
"""Voxels around a structure that count as its surroundings."""
_MAX_VOXELS = 2**18
"""Larger structures are compared with their surroundings at every second, third, ... voxel."""

_MAX_CASES = 60
_MAX_READ = 2**27
"""Voxels of images that are read; no further case is read beyond."""

Floats = npt.NDArray[np.float64]
Thirds = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseErrors:
    """What is measured in one case, by class key as in `summary.json`; classes that cannot be measured are missing.

    Attributes:
        thirds: Dice in the first, middle and last third of the slices in which the true labels have the class.
        ends: names of the first and the last third.
        contrast: difference between the mean intensities of the class and of its surroundings, in standard deviations
            (root mean square of both); of the channel with the largest one.
    """

    thirds: Mapping[str, Thirds]
    ends: tuple[str, str]
    contrast: Mapping[str, float]


def measure_cases(scores: Scores, sources: ImageSources, axis: int, ignore: int | None) -> dict[str, CaseErrors]:
    """Measure scored cases whose images are found, by the name of the prediction's file.

    Of many or large cases a random sample is measured, the same each time.

    Args:
        scores: of the cases.
        sources: where to look for images.
        axis: across the slices.
        ignore: value of true labels where nothing is scored.
    """
    measured: dict[str, CaseErrors] = {}
    num_voxels = 0
    for index in np.random.default_rng(0).permutation(len(scores.metric_per_case))[:_MAX_CASES]:
        scored = scores.metric_per_case[index]
        try:
            case = load_case(scored, sources)
        except SegwrightError as error:
            logger.debug("%s: not measured: %s", scored.case, error)
            continue
        measured[scored.case] = measure_errors(case, list(scores.mean), axis, ignore)
        num_voxels += case.image.size
        if num_voxels >= _MAX_READ:
            break
    return measured


def measure_errors(case: CaseImages, keys: Sequence[str], axis: int, ignore: int | None) -> CaseErrors:
    """Measure a case.

    Args:
        case: its image, true and predicted labels.
        keys: classes, as in `summary.json`.
        axis: across the slices.
        ignore: value of true labels where nothing is scored.
    """
    classes = [class_key(key) for key in keys]
    direction = case.directions[axis : axis + 1]
    is_backward = direction in _OPPOSITE
    thirds = {}
    for key, counts in zip(keys, _slice_counts(case, classes, axis, ignore), strict=True):
        found = _dice_of_thirds(counts)
        if found is not None:
            thirds[key] = (found[2], found[1], found[0]) if is_backward else found
    contrasts = {key: _contrast(case, each, ignore) for key, each in zip(keys, classes, strict=True)}
    return CaseErrors(
        thirds=thirds,
        ends=_ENDS.get(_OPPOSITE.get(direction, direction), UNKNOWN_ENDS),
        contrast={key: value for key, value in contrasts.items() if value is not None},
    )


def _slice_counts(case: CaseImages, classes: Sequence[ClassKey], axis: int, ignore: int | None) -> Floats:
    """Return the voxels that both label maps have, and those of the true and the predicted one; (K, slices, 3)."""
    truth, predicted = np.moveaxis(case.reference, axis, 0), np.moveaxis(case.prediction, axis, 0)
    values = {value for key in classes for value in ((key,) if isinstance(key, int) else key)}
    columns = {value: column for column, value in enumerate(sorted(values), start=1)}  # 0: any other value
    members = np.zeros((len(classes), len(columns) + 1))
    for row, key in enumerate(classes):
        members[row, [columns[value] for value in ((key,) if isinstance(key, int) else key)]] = 1
    number = np.zeros(max(columns, default=0) + 2, dtype=np.intp)
    number[list(columns)] = list(columns.values())
    counts = np.zeros((len(classes), len(truth), 3))
    for position, (one, other) in enumerate(zip(truth, predicted, strict=True)):
        if ignore is not None:
            one, other = one[one != ignore], other[one != ignore]
        pairs = number[_clipped(one, number)] * members.shape[1] + number[_clipped(other, number)]
        table = np.bincount(pairs.reshape(-1), minlength=members.shape[1] ** 2).reshape(members.shape[1], -1)
        both = ((members @ table) * members).sum(axis=1)
        counts[:, position] = np.stack([both, members @ table.sum(axis=1), members @ table.sum(axis=0)], axis=1)
    return counts


def _clipped(labels: npt.NDArray[Any], table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return label values as indices of a table; the last one for values beyond it, 0 for negative ones."""
    indices: npt.NDArray[Any] = np.clip(labels, 0, len(table) - 1)
    return indices


def _dice_of_thirds(counts: Floats) -> Thirds | None:
    """Return Dice by thirds from counts (slices, 3); None with too few slices. Predictions beyond count at the ends."""
    slices = np.flatnonzero(counts[:, 1])
    if not len(slices) or slices[-1] - slices[0] + 1 < _MIN_SLICES:
        return None
    first, height = slices[0], slices[-1] - slices[0] + 1
    third = np.clip(3 * (np.arange(len(counts)) - first) // height, 0, 2)
    both, true, predicted = (np.bincount(third, column, 3) for column in counts.T)
    with np.errstate(invalid="ignore"):
        low, middle, high = (2 * both / (true + predicted)).tolist()
    return None if any(map(math.isnan, (low, middle, high))) else (low, middle, high)


def _contrast(case: CaseImages, key: ClassKey, ignore: int | None) -> float | None:
    """Return the contrast of a class; None without it or without surroundings."""
    box = _box_around(case.reference, key)
    if box is None:
        return None
    step = max(1, math.ceil((math.prod(stop - start for start, stop in box) / _MAX_VOXELS) ** (1 / len(box))))
    index = tuple(slice(start, stop, step) for start, stop in box)
    truth, image = case.reference[index], case.image[(slice(None), *index)]
    inside = class_mask(truth, key)
    around = scipy.ndimage.binary_dilation(inside, iterations=_MARGIN) & ~inside
    if ignore is not None:
        around &= truth != ignore
    if not inside.any() or not around.any():
        return None
    found = []
    for channel in image:
        one, other = channel[inside].astype(np.float64), channel[around].astype(np.float64)
        spread = math.sqrt((one.var() + other.var()) / 2)
        if spread > 0 and math.isfinite(spread):
            found.append(abs(one.mean() - other.mean()) / spread)
    return float(max(found)) if found else None


def _box_around(labels: npt.NDArray[Any], key: ClassKey) -> Box | None:
    """Return the box of a class with a margin; None without the class."""
    mask = class_mask(labels, key)
    box = []
    for axis, size in enumerate(mask.shape):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hits):
            return None
        box.append((max(int(hits[0]) - _MARGIN, 0), min(int(hits[-1]) + 1 + _MARGIN, size)))
    return tuple(box)
