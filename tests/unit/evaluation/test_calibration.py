"""The temperature of held-out cases against overconfident logits whose true temperature is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from segwright.data.labels import Labels
from segwright.evaluation.calibration import NUM_BINS, TEMPERATURES, CalibrationStats, CalibrationStatsCollector, fit
from segwright.inference.reliability.calibration import Calibration
from segwright.inference.reliability.model import ReliabilityModel

LABELS = Labels({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = Labels({"background": 0, "whole": (1, 2), "core": (2,), "ignore": 3}, (1, 2))

Floats = npt.NDArray[np.float64]


def drawn(labels: Labels, seed: int, count: int = 4000) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return logits (H, N) and labels (N) that occur with the probabilities of the logits."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(scale=2, size=(labels.num_heads, count))
    if labels.has_regions:
        whole = draw.random(count) < 1 / (1 + np.exp(-logits[0]))
        logits[1] = np.where(whole, logits[1], -30)  # a core lies in the whole
        core = draw.random(count) < 1 / (1 + np.exp(-logits[1]))
        return logits, whole.astype(int) + (core & whole)
    probabilities = labels.probabilities(logits).astype(float)
    return logits, (draw.random(count) > probabilities.cumsum(axis=0)).sum(axis=0)


def reliability(labels: Labels, seed: int, *, heat: float) -> CalibrationStats:
    """Return that of a case whose logits are `heat` times too large."""
    logits, truth = drawn(labels, seed)
    found = CalibrationStatsCollector(labels)
    for part in np.array_split(np.arange(len(truth)), 3):
        found.add((heat * logits[:, part]).astype(np.float32), truth[part])
    result = found.stats()
    assert result is not None
    return result


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_wrong_confidence(labels: Labels, heat: float) -> None:
    found = fit([reliability(labels, seed, heat=heat) for seed in range(6)])
    assert found is not None
    assert found.temperature == pytest.approx(heat, rel=0.13)  # a step of the grid
    assert found.ece_after < 0.02
    assert found.ece_before > 0.05 or heat == 1


def test_likelihood_and_gaps_are_their_definitions() -> None:
    logits, truth = drawn(LABELS, 0, count=300)
    truth[:50] = 3
    found = CalibrationStatsCollector(LABELS)
    found.add(logits.astype(np.float32), truth)
    result = found.stats()
    assert result is not None
    for index, temperature in enumerate(TEMPERATURES):
        powers = np.exp(logits[:, 50:] / temperature)
        probabilities = powers / powers.sum(axis=0)
        own = probabilities[truth[50:], np.arange(250)]
        assert result.nll[index] == pytest.approx(-np.log(own).mean(), rel=1e-3)
        confidence, is_right = probabilities.max(axis=0), probabilities.argmax(axis=0) == truth[50:]
        for each in range(NUM_BINS):
            inside = (confidence >= each / NUM_BINS) & (confidence < (each + 1) / NUM_BINS)
            expected = (is_right[inside] - confidence[inside]).sum() / 250
            assert result.gaps[index][each] == pytest.approx(expected, abs=0.005)


def test_a_temperature_that_does_not_lower_the_error_is_not_taken() -> None:
    def case(best: int, gaps: Sequence[float]) -> CalibrationStats:
        """A case whose likelihood is best at one temperature, with a gap at each."""
        nll = tuple(float(abs(index - best)) for index in range(len(TEMPERATURES)))
        return CalibrationStats(nll=nll, gaps=tuple((gap,) for gap in gaps))

    wider = [0.1 * (1 + abs(temperature - 1)) for temperature in TEMPERATURES]
    found = fit([case(20, wider), case(20, wider)])
    assert found is not None
    assert (found.temperature, found.ece_before, found.ece_after) == (1, pytest.approx(0.1), pytest.approx(0.1))
    assert not found.helps


@pytest.mark.parametrize(("after", "used"), [(0.02, 1.0), (0.005, 2.0)])
def test_a_stored_temperature_is_used_only_where_it_lowers_the_error(
    after: float, used: float, caplog: pytest.LogCaptureFixture
) -> None:
    known = ReliabilityModel(calibration=Calibration(temperature=2.0, ece_before=0.01, ece_after=after, cases=5))
    assert known.temperature(calibrated=True) == used
    assert ("probabilities are written as they are" in caplog.text) == (used == 1)


def test_nothing_is_changed_where_no_other_case_can_tell() -> None:
    alone = fit([reliability(LABELS, 0, heat=3)])
    assert alone is not None
    assert (alone.temperature, alone.ece_after) == (1, alone.ece_before)
    assert fit([]) is None
    nothing = CalibrationStatsCollector(LABELS)
    nothing.add(np.zeros((3, 4), np.float32), np.full(4, 3))
    assert nothing.stats() is None
