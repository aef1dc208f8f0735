"""The expected Dice of held-out cases, and of failures that none of them has shown."""

from __future__ import annotations

import numpy as np
import pytest

from segwright.evaluation.dice_estimator import HeldOut, auroc, fit
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.expected_dice import DiceEstimator

AXES = ((0, 1, 2),)


def observed(lost: float, *, volume: float = 1000.0, draw: np.random.Generator | None = None) -> Observation:
    """Return what is seen of a case with two classes of which `lost` Dice seems lost."""
    shake = 0.0 if draw is None else float(draw.normal(scale=0.01))
    overlap = min(max(1 - lost + shake, 0.0), 1.0)
    return Observation(volumes=(volume, volume), overlaps=(overlap, overlap), entropy=lost / 2, disagreement=lost / 2)


def cases(count: int, *, bias: float = 0.0) -> list[HeldOut]:
    """Return cases of which nearly none fails; Dice is `bias` below what it seems."""
    draw = np.random.default_rng(0)
    lost = draw.uniform(0.02, 0.12, count)
    return [
        HeldOut(
            observation=observed(each, volume=float(draw.uniform(800, 1200)), draw=draw),
            dice=1 - each - bias,
            present=(True, True),
        )
        for each in lost
    ]


def known(count: int = 20, *, bias: float = 0.0) -> DiceEstimator:
    found = fit(cases(count, bias=bias), AXES)
    assert found is not None
    return found


@pytest.mark.parametrize("bias", [0.0, 0.1, -0.02])
def test_usual_cases_are_told_within_a_few_hundredths(bias: float) -> None:
    estimator = known(bias=bias)
    assert estimator.error is not None
    assert estimator.error < 0.03
    assert estimator.cases == 20
    assert estimator.mirror_axes == AXES


def test_the_worst_fifth_is_told_apart_out_of_sample() -> None:
    estimator = known(40)
    assert estimator.auroc is not None
    assert estimator.auroc > 0.9
    dice = sorted(case.dice for case in cases(40))
    assert estimator.tau == dice[7]


@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_failures_that_no_held_out_case_has_shown_are_told(count: int) -> None:
    estimator = known(count)
    usual = [estimator.expected_dice(case.observation) for case in cases(5)]
    unsure = estimator.expected_dice(observed(0.6))
    missing = estimator.expected_dice(Observation(volumes=(0, 0), overlaps=(None, None), entropy=0, disagreement=0))
    small = estimator.expected_dice(observed(0.05, volume=50))
    assert max(unsure, missing) < 0.5 < min(usual)
    assert small < min(usual)
    assert estimator.warning(unsure) is not None
    assert estimator.warning(missing) is not None
    assert all(estimator.warning(each) is None for each in usual)


def test_no_weight_makes_a_worse_looking_case_better() -> None:
    draw = np.random.default_rng(1)
    turned = [
        HeldOut(observation=observed(float(lost), draw=draw), dice=0.5 + float(lost), present=(True, True))
        for lost in draw.uniform(0, 0.4, 30)
    ]
    estimator = fit(turned, AXES)
    assert estimator is not None
    assert min(estimator.weights.values()) >= 0


def test_a_class_that_is_rare_need_not_be_there() -> None:
    rare = [
        HeldOut(
            observation=Observation(volumes=(1000, 0), overlaps=(0.95, None), entropy=0.05, disagreement=0.05),
            dice=0.95,
            present=(True, index == 0),
        )
        for index in range(10)
    ]
    estimator = fit(rare, AXES)
    assert estimator is not None
    assert estimator.expected_dice(rare[1].observation) > 0.9


def test_auroc_counts_pairs() -> None:
    draw = np.random.default_rng(2)
    expected, failed = draw.integers(0, 6, 30).astype(float), draw.random(30) < 0.3
    pairs = [(low < high) + (low == high) / 2 for low in expected[failed] for high in expected[~failed]]
    assert auroc(expected, failed) == pytest.approx(np.mean(pairs))
    assert auroc(expected, np.zeros(30, bool)) is None


def test_nothing_is_fitted_without_cases() -> None:
    assert fit([], AXES) is None
