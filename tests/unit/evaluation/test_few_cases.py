"""With few held-out cases nothing is stated more precisely than they allow."""

from __future__ import annotations

import numpy as np
import pytest

from segwright.evaluation.dice_estimator import HeldOut, fit
from segwright.evaluation.statistics import MIN_CASES_FOR_INTERVAL, few_cases_note, interval, margin_interval
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.model import ReliabilityModel

AXES = ((0, 1, 2),)


@pytest.mark.parametrize("count", [1, 2, MIN_CASES_FOR_INTERVAL - 1])
def test_few_cases_have_no_interval(count: int) -> None:
    dice = np.linspace(0.5, 0.9, count)[:, None]
    assert interval(dice) is None
    assert margin_interval(dice, dice / 2) is None
    assert interval(np.vstack([dice, np.full((10, 1), np.nan)])) is None
    assert str(count) in few_cases_note(count)


def test_enough_cases_have_an_interval_and_no_note() -> None:
    dice = np.linspace(0.5, 0.9, MIN_CASES_FOR_INTERVAL)[:, None]
    assert interval(dice) is not None
    assert margin_interval(dice, dice / 2) is not None
    assert few_cases_note(MIN_CASES_FOR_INTERVAL) == ""


@pytest.mark.parametrize("count", [5, 8])
def test_intervals_of_few_cases_cover_the_mean_nearly_as_often_as_they_say(count: int) -> None:
    """Plain percentiles cover it in 83 and 86 % of these draws."""
    draw = np.random.default_rng(0)
    found = [interval(draw.normal(0.8, 0.05, (count, 1))) for _ in range(300)]
    covered = [low <= 0.8 <= high for low, high in filter(None, found)]
    assert len(covered) == 300
    assert np.mean(covered) > 0.9


def held_out(count: int) -> list[HeldOut]:
    return [
        HeldOut(
            observation=Observation(volumes=(1000.0,), overlaps=(0.9 - 0.01 * index,), entropy=0.1, disagreement=0.1),
            dice=0.9 - 0.01 * index,
            present=(True,),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10])
def test_the_estimator_reports_no_more_than_its_cases_allow(count: int) -> None:
    estimator = fit(held_out(count), AXES)
    assert estimator is not None
    assert (estimator.error is not None) == (count >= 3)
    assert (estimator.auroc is not None) == (count >= 10)
    reliability = ReliabilityModel(dice_estimator=estimator)
    usual = reliability.assess(held_out(1)[0].observation)
    assert (usual.expected_dice is not None) == (count >= 3)
    assert usual.warnings == ()
    failed = reliability.assess(Observation(volumes=(0.0,), overlaps=(None,), entropy=0.0, disagreement=0.0))
    assert "expected Dice" in failed.warnings[0]
