"""Voxel counts and overlap against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segwright.core.errors import ImageError
from segwright.data.labels import ClassKey
from segwright.evaluation.metrics import Overlap, confusion, overlaps

KEYS: tuple[ClassKey, ...] = (0, 1, 2, (1, 2), (3,), 7)


def brute_force(
    reference: np.ndarray, prediction: np.ndarray, key: ClassKey, ignore: int | None
) -> tuple[int, int, int, int]:
    """Return TP, FP, FN, TN, voxel by voxel."""
    wanted = key if isinstance(key, tuple) else (key,)
    counts = [0, 0, 0, 0]
    for true, guess in zip(reference.ravel(), prediction.ravel(), strict=True):
        if ignore is not None and true == ignore:
            continue
        counts[
            {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}[true in wanted, guess in wanted]
        ] += 1
    return counts[0], counts[1], counts[2], counts[3]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ignore", [None, 3])
def test_counts_equal_brute_force(seed: int, ignore: int | None) -> None:
    generator = np.random.default_rng(seed)
    reference, prediction = generator.integers(0, 4, (2, 5, 6, 7))
    for key, overlap in overlaps(reference, prediction, KEYS, ignore_label=ignore).items():
        found = (overlap.tp, overlap.fp, overlap.fn, overlap.tn)
        assert found == brute_force(reference, prediction, key, ignore)


@pytest.mark.parametrize("offset", [-3, 250, 60000])
def test_any_label_values_are_counted(offset: int) -> None:
    generator = np.random.default_rng(0)
    reference, prediction = generator.integers(0, 3, (2, 4, 4, 4)) * 7 + offset
    for key in (offset, offset + 7, (offset, offset + 14)):
        overlap = confusion(reference, prediction).overlap(key)
        found = (overlap.tp, overlap.fp, overlap.fn, overlap.tn)
        assert found == brute_force(reference, prediction, key, None)


def test_a_class_in_neither_map_has_no_overlap() -> None:
    overlap = Overlap(tp=0, fp=0, fn=0, tn=8)
    assert math.isnan(overlap.dice)
    assert math.isnan(overlap.iou)


@pytest.mark.parametrize("overlap", [Overlap(tp=0, fp=3, fn=0, tn=5), Overlap(tp=0, fp=0, fn=3, tn=5)])
def test_a_class_in_one_map_only_scores_zero(overlap: Overlap) -> None:
    assert (overlap.dice, overlap.iou) == (0, 0)


def test_dice_and_iou() -> None:
    overlap = Overlap(tp=3, fp=1, fn=2, tn=4)
    assert overlap.dice == 6 / 9
    assert overlap.iou == 3 / 6


def test_a_case_that_is_ignored_everywhere_has_no_scores() -> None:
    everything_ignored = np.full((2, 2, 2), 3)
    overlap = confusion(everything_ignored, np.ones((2, 2, 2), dtype=int), ignore_label=3).overlap(1)
    assert (overlap.tp, overlap.fp, overlap.fn, overlap.tn) == (0, 0, 0, 0)
    assert math.isnan(overlap.dice)


def test_an_image_is_no_label_map() -> None:
    image = np.arange(4096).reshape(16, 16, 16)
    with pytest.raises(ImageError, match="4096 different values, expected at most 2048; is one of them an image"):
        confusion(image, image)
