"""Disagreement and entropy against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segwright.data.labels import Labels
from segwright.inference.reliability.log_partition import log_partition
from segwright.inference.reliability.uncertainty import entropy_map
from segwright.inference.window.sliding import Window, window_planes

LABELS = Labels({"background": 0, "a": 1, "b": 2}, None)
REGIONS = Labels({"background": 0, "whole": (1, 2), "core": (2,), "rim": (1,)}, (1, 2, 3))


class Scaled(nn.Module):
    def __init__(self, gains: tuple[float, ...]) -> None:
        super().__init__()
        self.gains = gains

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] * gain for gain in self.gains], dim=1)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_disagreement_is_the_mean_divergence_from_the_pool(labels: Labels) -> None:
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    gains = [(1.0, -2.0, 0.5), (3.0, 1.0, -1.0)]
    window = Window(patch_size=(8, 8, 8), device=torch.device("cpu"), precision="fp32")
    networks = [Scaled(each) for each in gains]
    planes = window_planes(networks, image, 3, window=window, convex_fn=log_partition(labels))
    found = torch.cat([each.logits for each in planes], dim=1).numpy()
    single = [image * np.array(each, np.float32)[:, None, None, None] for each in gains]
    np.testing.assert_allclose(found[:3], np.mean(single, axis=0), rtol=1e-5, atol=1e-5)
    pool = labels.probabilities(found[:3]).astype(float)
    expected = np.zeros(image.shape[1:])
    for logits in single:
        own = labels.probabilities(logits).astype(float)
        expected += (pool * np.log(pool / own)).sum(axis=0) / 2
        if labels.has_regions:
            expected += ((1 - pool) * np.log((1 - pool) / (1 - own))).sum(axis=0) / 2
    np.testing.assert_allclose(found[3], expected, atol=2e-4)
    assert found[3].max() > 0.1


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_entropy_is_one_where_nothing_is_known_and_zero_where_all_is(labels: Labels) -> None:
    sure = np.zeros((3, 1, 1, 1), np.float32)
    sure[0] = 1
    unsure = np.full((3, 1, 1, 1), 0.5 if labels.has_regions else 1 / 3, np.float32)
    assert entropy_map(unsure, labels).item() == pytest.approx(1, abs=1e-5)
    assert entropy_map(sure, labels).item() == 0
