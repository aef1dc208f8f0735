"""The sampled voxels of reliability statistics, and the reliability of mean probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from segwright.data.labels import Labels
from segwright.evaluation.calibration import CalibrationStatsCollector
from segwright.inference.reliability.case_statistics import Observation
from segwright.training.validation.reliability import CaseStats, VoxelSampler, mean_calibration_stats, stats_file

LABELS = Labels({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = Labels({"background": 0, "whole": (1, 2), "core": (2,)}, (1, 2))


def truth(shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    found = np.zeros(shape, np.int16)
    found[20:24, 30:40, 12:20] = 1
    found[22:26, 30:33, 12:14] = 2
    found[0, 0, 0] = 3
    return found


def test_sampled_voxels_are_around_the_structures_and_limited_in_number() -> None:
    sampler = VoxelSampler.around(truth((40, 60, 50)), LABELS)
    assert sampler is not None
    assert sampler.box == ((12, 34), (22, 48), (4, 28))
    assert sampler.step == 1
    large = VoxelSampler.around(np.ones((70, 80, 90), np.int16), LABELS)
    assert large is not None
    assert large.step == 3
    assert VoxelSampler.around(np.full((4, 4, 4), 3, np.int16), LABELS) is None


@pytest.mark.parametrize("portion", [1, 2, 5, 70])
def test_parts_of_the_planes_give_every_sampled_plane_once(portion: int) -> None:
    sampler = VoxelSampler.around(np.ones((70, 80, 90), np.int16), LABELS)
    assert sampler is not None
    found = [plane for start in range(0, 70, portion) for plane in sampler.planes(start, min(start + portion, 70))]
    assert found == list(range(0, 70, 3))
    assert sampler.sample(np.zeros((3, 80, 90))).shape == (3, 27 * 30)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_mean_probabilities_have_the_reliability_of_their_logits(labels: Labels) -> None:
    label_map = truth((40, 60, 50))
    logits = np.random.default_rng(0).normal(size=(labels.num_heads, *label_map.shape)).astype(np.float32)
    probabilities = labels.probabilities(logits)
    sampler, found = VoxelSampler.around(label_map, labels), CalibrationStatsCollector(labels)
    assert sampler is not None
    for plane in sampler.planes(0, 40):
        found.add(sampler.sample(logits[:, plane]), sampler.sample(label_map[plane]))
    other = np.full_like(probabilities, 0.5)
    judged = mean_calibration_stats([2 * probabilities - other, other], label_map, labels)
    expected = found.stats()
    assert judged is not None
    assert expected is not None
    np.testing.assert_allclose(judged.nll, expected.nll, rtol=1e-3)
    np.testing.assert_allclose(judged.gaps, expected.gaps, atol=1e-3)


def test_case_statistics_round_trip(tmp_path: Path) -> None:
    seen = CaseStats(
        observation=Observation(volumes=(1.0,), overlaps=(None,), entropy=0.5), calibration=None, mirror_axes=((0,),)
    )
    seen.save(tmp_path, "case")
    assert stats_file(tmp_path, "case").is_file()
    assert CaseStats.load(tmp_path, "case") == seen
