"""Targets: padding to background, region channels, and one target per output resolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.data.labels import Labels
from segwright.training.loading.targets import downsample, encode_targets, target_bytes

PLAIN = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
REGIONS = Labels.from_dataset_json(
    {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    }
)


def label_maps(shape: tuple[int, ...] = (2, 1, 8, 10, 6), high: int = 5) -> torch.Tensor:
    values = np.random.default_rng(0).integers(-1, high, size=shape)
    return torch.from_numpy(values.astype(np.int16))


def test_outside_becomes_background_and_the_rest_stays() -> None:
    maps = label_maps(high=3)
    target = encode_targets(maps, PLAIN)
    assert isinstance(target, torch.Tensor)
    assert torch.equal(target, maps.clamp(min=0))
    assert target.dtype == torch.int16
    assert maps.min() == -1


def test_regions_become_channels_in_order_with_ignore_last() -> None:
    maps = label_maps()
    target = encode_targets(maps, REGIONS)
    assert isinstance(target, torch.Tensor)
    expected = np.stack([np.isin(maps[:, 0], values) for values in ([1, 2, 3], [2, 3], [3], [4])], axis=1)
    np.testing.assert_array_equal(target.numpy(), expected)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_one_target_per_output_resolution(labels: Labels) -> None:
    maps = label_maps(high=3)
    scales = [[1, 1, 1], [0.5, 0.5, 0.5], [0.5, 0.25, 0.25]]
    targets = encode_targets(maps, labels, scales)
    assert isinstance(targets, list)
    full = encode_targets(maps, labels)
    assert isinstance(full, torch.Tensor)
    for target, size in zip(targets, [(8, 10, 6), (4, 5, 3), (4, 2, 2)], strict=True):
        expected = functional.interpolate(full.float(), size=size, mode="nearest-exact")
        assert torch.equal(target, expected.to(target.dtype))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 150), scale=st.floats(0.01, 1.0))
def test_downsampling_equals_nearest_exact_for_any_size(size: int, scale: float) -> None:
    line = torch.arange(size, dtype=torch.int16).view(1, 1, size, 1)
    reduced = max(round(size * scale), 1)
    expected = functional.interpolate(line.float(), size=(reduced, 1), mode="nearest-exact")
    assert torch.equal(downsample(line, (scale, 1.0)), expected.to(torch.int16))


def test_bytes_of_a_targets_voxel_are_those_it_takes() -> None:
    for labels in (PLAIN, REGIONS):
        target = encode_targets(label_maps(high=3), labels)
        assert isinstance(target, torch.Tensor)
        assert target_bytes(labels) == target.nbytes // (2 * 8 * 10 * 6)
