from __future__ import annotations

import numpy as np
import pytest

from segwright.data import weighted_sample as samples
from segwright.data.weighted_sample import WeightedSample, draw


@pytest.mark.parametrize(("size", "num_draws"), [(50, 5000), (5000, 50), (1, 20), (300, 300)])
def test_draws_are_those_of_choice(monkeypatch: pytest.MonkeyPatch, size: int, num_draws: int) -> None:
    monkeypatch.setattr(samples, "DRAWS_AT_ONCE", 37)
    values = np.random.RandomState(0).normal(size=size).astype(np.float32).round(1)
    ours, theirs = np.random.RandomState(1234), np.random.RandomState(1234)

    distinct, counts = draw(values, num_draws, ours)

    np.testing.assert_array_equal(np.repeat(distinct, counts), np.sort(theirs.choice(values, num_draws)))
    assert ours.randint(1 << 30) == theirs.randint(1 << 30)


def test_nothing_to_draw_from_takes_no_random_numbers() -> None:
    random = np.random.RandomState(1234)

    distinct, counts = draw(np.empty(0, np.float32), 10, random)

    assert (len(distinct), len(counts)) == (0, 0)
    assert random.randint(100) == 47  # the first number of that seed


def collected(parts: list[np.ndarray]) -> WeightedSample:
    sample = WeightedSample()
    for part in parts:
        sample.add(*np.unique(part, return_counts=True))
    return sample


@pytest.mark.parametrize("merge_every", [1, 100, 1 << 22])
def test_statistics_equal_numpy(monkeypatch: pytest.MonkeyPatch, merge_every: int) -> None:
    monkeypatch.setattr(samples, "MERGE_EVERY", merge_every)
    random = np.random.RandomState(5)
    parts = [random.gamma(2, 100, 200).astype(np.float32).round(place) for place in (0, 1, 5)]
    everything = np.concatenate(parts).astype(np.float64)

    sample = collected([*parts, np.empty(0, np.float32)])

    assert sample.moments() == pytest.approx((everything.mean(), everything.std()), rel=1e-12)
    assert sample.percentiles([0.5, 50, 99.5]) == pytest.approx(np.percentile(everything, [0.5, 50, 99.5]), rel=1e-12)
    assert (sample.smallest, sample.largest) == (everything.min(), everything.max())


def test_order_of_arrival_does_not_matter() -> None:
    random = np.random.RandomState(6)
    parts = [random.normal(1e4, 1, 50).astype(np.float32) for _ in range(5)]

    assert collected(parts).moments() == collected(parts[::-1]).moments()


def test_too_many_distinct_values_are_rounded_only_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_DISTINCT", 1000)
    monkeypatch.setattr(samples, "MERGE_EVERY", 500)
    values = np.random.RandomState(7).gamma(2, 100, 5000).astype(np.float32)
    values[::3] *= -1

    sample = collected(np.array_split(values, 7))

    expected = np.percentile(values.astype(np.float64), [0.5, 50, 99.5])
    assert sample.percentiles([0.5, 50, 99.5]) == pytest.approx(expected, rel=4e-6)
    assert sample.percentiles([0.5, 50, 99.5]) != pytest.approx(expected, rel=1e-9)
