"""Sampling rules: forced foreground, class choice, patch positions, padded reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.core.errors import ConfigError
from segwright.training.config import TrainConfig
from segwright.training.loading.loaders import forced_share
from segwright.training.loading.sampling import choose_class, choose_start, is_forced, num_forced, read_box, start_range
from tests.unit.training.tiny_task import make
from tests.unit.training.tiny_task import settings as tiny_settings

ANNOTATED = (-1, 0, 1, 2)


def voxels(*points: tuple[int, ...]) -> np.ndarray:
    return np.array(points, dtype=np.int64).reshape(-1, 3)


def test_forced_counts_follow_the_checked_table() -> None:
    counts = [num_forced(batch_size, 0.33) for batch_size in range(1, 13)]
    assert counts == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]


@pytest.mark.parametrize(("fraction", "forced"), [(0.0, 0), (1.0, 4)])
def test_no_or_every_sample_can_be_forced(fraction: float, forced: int) -> None:
    assert num_forced(4, fraction) == forced


def test_forced_samples_come_last() -> None:
    rng = np.random.default_rng(0)
    assert [is_forced(index, 5, 0.33, rng) for index in range(5)] == [False, False, False, True, True]


def test_batch_of_one_forces_foreground_by_chance() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([is_forced(0, 1, 0.33, rng) for _ in range(2000)])
    assert abs(share - 0.33) < 0.04


def test_every_present_class_is_chosen_equally_often() -> None:
    locations = {1: voxels(*[(0, 0, 0)] * 500), 2: voxels((1, 1, 1)), 3: voxels(), (1, 2): voxels((2, 2, 2))}
    rng = np.random.default_rng(0)
    chosen = [choose_class(locations, rng, forced=True, has_ignore=False) for _ in range(3000)]
    assert set(chosen) == {1, 2, (1, 2)}
    assert all(abs(chosen.count(key) / 3000 - 1 / 3) < 0.04 for key in (1, 2, (1, 2)))


def test_annotated_voxels_are_a_last_resort_of_forced_patches() -> None:
    rng = np.random.default_rng(0)
    both = {1: voxels((0, 0, 0)), ANNOTATED: voxels((1, 1, 1))}
    assert {choose_class(both, rng, forced=True, has_ignore=True) for _ in range(50)} == {1}
    assert choose_class({**both, 1: voxels()}, rng, forced=True, has_ignore=True) == ANNOTATED


def test_unforced_patches_lie_on_annotated_voxels_where_a_label_is_ignored() -> None:
    rng = np.random.default_rng(0)
    locations = {1: voxels((0, 0, 0)), ANNOTATED: voxels((1, 1, 1))}
    assert choose_class(locations, rng, forced=False, has_ignore=True) == ANNOTATED
    assert choose_class({1: voxels((0, 0, 0))}, rng, forced=False, has_ignore=False) is None
    assert choose_class({1: voxels(), ANNOTATED: voxels()}, rng, forced=False, has_ignore=True) is None


def test_case_without_foreground_falls_back_to_anywhere() -> None:
    assert choose_class({1: voxels(), 2: voxels()}, np.random.default_rng(0), forced=True, has_ignore=False) is None


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [(10, 4, (0, 7)), (4, 4, (0, 1)), (4, 7, (-2, 0)), (4, 6, (-1, 0))],
)
def test_start_range_keeps_the_patch_inside_or_the_case_in_the_middle(
    size: int, patch: int, expected: tuple[int, int]
) -> None:
    assert start_range((size,), (patch,)) == (expected,)


sizes = st.tuples(*[st.integers(1, 20)] * 3)


@settings(max_examples=60, deadline=None)
@given(shape=sizes, patch=sizes, seed=st.integers(0, 1000), forced=st.booleans())
def test_patch_never_leaves_the_case_further_than_its_size_demands(
    shape: tuple[int, ...], patch: tuple[int, ...], seed: int, forced: bool
) -> None:
    rng = np.random.default_rng(seed)
    voxel = rng.integers(0, shape)
    start = choose_start(shape, patch, rng, voxels=voxel[None] if forced else None)
    for low, size, width, position in zip(start, shape, patch, voxel, strict=True):
        missing = max(width - size, 0)
        assert low >= -((missing + 1) // 2)
        assert low + width <= size + (missing + 1) // 2
        if forced:
            assert low <= position < low + width


def test_forced_patch_is_centred_on_its_voxel_away_from_borders() -> None:
    start = choose_start((50, 50, 50), (8, 9, 10), np.random.default_rng(0), voxels=voxels((20, 21, 22)))
    assert start == (16, 17, 17)


def test_every_position_is_reached_by_free_patches() -> None:
    rng = np.random.default_rng(0)
    starts = {choose_start((6, 5, 4), (4, 4, 4), rng) for _ in range(200)}
    assert starts == {(a, b, 0) for a in range(3) for b in range(2)}


@settings(max_examples=60, deadline=None)
@given(shape=sizes, low=st.tuples(*[st.integers(-25, 25)] * 3), extent=sizes)
def test_read_box_equals_a_cut_from_the_padded_array(
    shape: tuple[int, ...], low: tuple[int, ...], extent: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    out = np.full((2, *extent), np.nan, dtype=np.float32)
    read_box(array, tuple((start, start + size) for start, size in zip(low, extent, strict=True)), fill=-1, out=out)
    padded = np.pad(array, [(0, 0)] + [(50, 50)] * 3, constant_values=-1)
    cut = tuple(slice(50 + start, 50 + start + size) for start, size in zip(low, extent, strict=True))
    np.testing.assert_array_equal(out, padded[(slice(None), *cut)])


def test_by_chance_each_sample_is_forced_with_equal_probability() -> None:
    rng = np.random.default_rng(0)
    forced = np.array([[is_forced(index, 4, 0.25, rng, by_chance=True) for index in range(4)] for _ in range(2000)])
    assert forced.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.04)
    assert len({*forced.sum(axis=1)}) > 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 2}, 0.33),
        ({"batch_size": 2, "oversample_by_chance": True}, 0.5),
        ({"batch_size": 9, "oversample_by_chance": True}, 3 / 9),
        ({"batch_size": 2, "oversample_by_chance": True, "oversample_foreground_percent": 0.1}, 0.1),
    ],
)
def test_the_default_chance_is_what_whole_batches_give(settings: dict[str, Any], expected: float) -> None:
    assert forced_share(TrainConfig.from_mapping(settings)) == pytest.approx(expected)


def mostly_the_last(identifiers: Sequence[str], rng: np.random.Generator) -> str:
    return identifiers[-1] if rng.random() < 0.9 else identifiers[0]


def nobody(identifiers: Sequence[str], rng: np.random.Generator) -> str:
    return "nobody"


def test_a_sampler_of_a_users_own_chooses_the_cases(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=tiny_settings(sampler=f"{__name__}:mostly_the_last", batch_size=100))
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    drawn = [sample.identifier for sample in loader.draw(0, 0)]
    assert {*drawn} == {"case_0", "case_2"}
    assert drawn.count("case_2") > 75
    assert drawn == [sample.identifier for sample in loader.draw(0, 0)]


@pytest.mark.parametrize(
    ("name", "message"),
    [("unifrom", "did you mean 'uniform'"), (f"{__name__}:nobody", "the sampler chose 'nobody'")],
)
def test_a_wrong_sampler_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, config=tiny_settings(sampler=name)).run_training()
