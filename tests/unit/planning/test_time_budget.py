"""The size that a time budget has room for, with steps of known times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.plan import Configuration, Plan
from segwright.networks.build import build_from_spec
from segwright.planning.budget_plan import with_choices
from segwright.planning.label_detail import FACTORS, coarsest_factor, kept_dice
from segwright.planning.planner import plan
from segwright.planning.presets import preset
from segwright.planning.rationale import explain
from segwright.planning.time_budget import (
    COVERED,
    ENOUGH_STEPS,
    SIZES,
    WANTED_STEPS,
    Choice,
    can_be_resized,
    choose,
    multiply_adds,
    next_budget_s,
    patch_of,
    quick_configuration,
    resized,
)

EVERYTHING = dict.fromkeys(FACTORS, 1.0)
NOTHING = {factor: float(factor == 1) for factor in FACTORS}


def planned(spacing: tuple[float, ...], shape: tuple[int, ...], name: str = "default", num_cases: int = 30) -> Plan:
    statistics = {"max": 1.0, "mean": 0.5, "median": 0.5, "min": 0.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
    fingerprint = Fingerprint.model_validate(
        {
            "spacings": [spacing] * num_cases,
            "shapes_after_crop": [shape] * num_cases,
            "foreground_intensity_properties_per_channel": {"0": {**statistics, "std": 0.1}},
            "median_relative_size_after_cropping": 1.0,
        }
    )
    description = DatasetDescription.model_validate(
        {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "heart": 1},
            "numTraining": num_cases,
            "file_ending": ".nii.gz",
        }
    )
    return plan(fingerprint, description, dataset_name="Dataset001_Heart", reader="NibabelIO", preset=preset(name))


HEART = planned((10.0, 1.5, 1.5), (10, 256, 216))
BRAIN = planned((1.0, 1.0, 1.0), (140, 171, 137))


def chosen_in(budget_s: float, full: Configuration, rate: float, kept: dict[float, float] = NOTHING) -> Choice:
    """Return the choice on a machine that does `rate` multiplications a second."""
    return choose(full, budget_s, kept, data_identifier="coarse", step_seconds=lambda each: multiply_adds(each) / rate)


def test_thick_slices_are_trained_in_2d_and_the_rest_in_3d() -> None:
    assert quick_configuration(HEART) == "2d"
    assert quick_configuration(BRAIN) == "3d_fullres"
    assert quick_configuration(planned((999.0, 1.0, 1.0), (1, 584, 565))) == "2d"


def test_a_machine_that_is_fast_enough_keeps_the_full_plan() -> None:
    full = BRAIN.configuration("3d_fullres")
    fast = multiply_adds(full) * ENOUGH_STEPS / 600
    choice = chosen_in(600, full, rate=1.5 * fast)
    assert choice.is_full
    assert choice.chosen.configuration is full
    assert next_budget_s(choice) is None
    assert not chosen_in(600, full, rate=0.6 * fast).is_full


@pytest.mark.parametrize("full", [HEART.configuration("2d"), BRAIN.configuration("3d_fullres")], ids=["2d", "3d"])
def test_more_time_never_gives_a_smaller_network(full: Configuration) -> None:
    rate = multiply_adds(full) / 8  # eight seconds for a step of the full plan
    costs = [multiply_adds(chosen_in(minutes * 60, full, rate).chosen.configuration) for minutes in range(2, 4000, 7)]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(SIZES) + 1  # each size has its time, and in the end the full plan


def test_the_budget_from_which_the_next_size_is_chosen_is_right() -> None:
    full = HEART.configuration("2d")
    rate = multiply_adds(full) / 8
    choice = chosen_in(600, full, rate)
    later = next_budget_s(choice)
    assert later is not None
    assert later > 600
    assert chosen_in(1.5 * later, full, rate).index > choice.index
    assert chosen_in(0.6 * later, full, rate).index == choice.index


def test_each_chosen_size_has_room_for_its_steps() -> None:
    full = BRAIN.configuration("3d_fullres")
    choice = chosen_in(7200, full, rate=multiply_adds(full) / 8)
    assert 0 < choice.index < len(SIZES)
    assert choice.chosen.steps(7200) >= WANTED_STEPS
    assert choice.chosen.is_timed


def test_steps_are_rounded_so_that_machines_of_one_kind_plan_alike() -> None:
    full = HEART.configuration("2d")
    plans = [
        choose(full, 600, NOTHING, data_identifier="coarse", step_seconds=lambda _, s=seconds: s).candidates
        for seconds in (0.22, 0.25, 0.28)
    ]
    assert plans[0] == plans[1] == plans[2]
    assert {each.step_s for each in plans[0] if each.is_timed} == {0.25}


def test_a_cheaper_size_never_counts_as_slower() -> None:
    times = iter((0.5, 0.25, 2.0, 4.0, 8.0))
    choice = choose(
        HEART.configuration("2d"), 600, NOTHING, data_identifier="coarse", step_seconds=lambda _: next(times)
    )
    assert [each.step_s for each in choice.candidates[:2]] == [0.25, 0.25]


def test_the_spacing_becomes_coarser_only_as_far_as_the_labels_allow() -> None:
    full, rate = HEART.configuration("2d"), 1e9
    kept = {1.0: 1.0, 1.25: 0.999, 1.5: 0.995, 2.0: 0.97, 2.5: 0.96, 3.0: 0.9, 4.0: 0.8}
    fine = chosen_in(600, full, rate).chosen.configuration
    coarse = chosen_in(600, full, rate, kept).chosen.configuration
    covering = chosen_in(600, full, rate, EVERYTHING).chosen.configuration
    assert fine.spacing == full.spacing
    assert fine.data_identifier == full.data_identifier
    assert coarse.spacing == tuple(1.5 * value for value in full.spacing)
    assert coarse.data_identifier == "coarse"
    assert covering.spacing[0] == pytest.approx(full.spacing[0] * math.sqrt(COVERED * 256 * 216 / 128**2))
    assert covering.median_image_size_in_voxels == pytest.approx((161, 136), abs=1)
    assert covering.patch_size == (128, 128)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((1.4, 1.25, 1.25), (115, 320, 232)), ((5.5, 1.9, 1.9), (30, 195, 262)), ((0.15, 0.15, 0.15), (50, 122, 74))],
    ids=["atrium", "abdomen", "mouse brain"],
)
def test_rounding_a_patch_up_does_not_make_it_larger_than_its_size(
    spacing: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    full = planned(spacing, shape).configuration("3d_fullres")
    for size in SIZES:
        fine, coarse = (math.prod(resized(full, size, factor, "coarse").patch_size) for factor in (1.0, 1.5))
        assert 0.55 * size.patch_voxels[3] <= fine <= size.patch_voxels[3]
        assert coarse <= size.patch_voxels[3]


def test_a_batch_size_of_ones_own_is_kept() -> None:
    choice = choose(
        HEART.configuration("2d"), 600, NOTHING, data_identifier="coarse", step_seconds=lambda _: 1.0, batch_size=3
    )
    assert {each.configuration.batch_size for each in choice.candidates[:-1]} == {3}


@settings(deadline=None, max_examples=60)
@given(
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    shape=st.tuples(*[st.integers(8, 600)] * 3),
    voxels=st.integers(8**3, 128**3),
)
def test_patches_fill_their_voxels_and_stay_within_the_image(
    spacing: tuple[float, ...], shape: tuple[int, ...], voxels: int
) -> None:
    patch = patch_of(spacing, shape, voxels)
    assert all(1 <= edge <= size for edge, size in zip(patch, shape, strict=True))
    if voxels < math.prod(shape):
        assert 0.4 * voxels <= math.prod(patch) <= 2.5 * voxels


@pytest.mark.parametrize("name", ["default", "resenc-m"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.features}-{size.patch_voxels[2]}")
def test_every_size_is_a_network_that_nnunet_s_plans_can_hold(name: str, size: object) -> None:
    full = planned((10.0, 1.5, 1.5), (10, 256, 216), name).configuration("2d")
    index = SIZES.index(size)  # type: ignore[arg-type]
    sized = chosen_in(600, full, rate=1.0, kept=EVERYTHING).candidates[index].configuration
    architecture = sized.architecture.model_dump(by_alias=True)
    network = build_from_spec(None, architecture, 1, 2, sized.patch_size, False)
    assert sum(parameter.numel() for parameter in network.parameters()) > 0
    assert all(
        edge % factor == 0 for edge, factor in zip(sized.patch_size, np.prod(sized.strides, axis=0), strict=True)
    )


def test_the_plan_holds_the_chosen_configurations_and_their_reasons() -> None:
    choice = chosen_in(600, HEART.configuration("2d"), rate=multiply_adds(HEART.configuration("2d")) / 8)
    made = with_choices(HEART, "nnUNetPlans_10m", {"2d": choice}, 600)
    assert made.configuration_names == ("2d",)
    assert made.configuration("2d").time_budget_s == 600
    assert made.configuration("2d").batch_size == choice.chosen.configuration.batch_size
    assert Plan.from_json(made.to_json()) == made
    text = explain(made)
    assert "size for 10m" in text
    assert "which allows" in text
    assert "too few; it needs a budget of about" in text
    assert "target spacing" in text  # what the full plan decided for all is still said
    assert "3d_fullres" not in text
    both = with_choices(
        made, "nnUNetPlans_10m", {"3d_fullres": chosen_in(600, HEART.configuration("3d_fullres"), 1e9)}, 600
    )
    assert both.configuration_names == ("2d", "3d_fullres")
    assert "size for 10m" in explain(both).split("3d_fullres:")[0]


def test_a_full_configuration_beside_a_resized_one_is_not_marked_as_made_for_the_budget() -> None:
    flat, full = HEART.configuration("2d"), HEART.configuration("3d_fullres")
    choices = {"2d": chosen_in(600, flat, rate=1e9), "3d_fullres": chosen_in(600, full, rate=multiply_adds(full) * 100)}
    assert choices["3d_fullres"].is_full
    made = with_choices(HEART, "nnUNetPlans_10m", choices, 600)
    assert [made.configuration(name).time_budget_s for name in ("2d", "3d_fullres")] == [600, None]


def test_stages_of_a_cascade_are_not_resized() -> None:
    large = planned((1.0, 0.8, 0.8), (482, 512, 512))
    names = [name for name in large.configuration_names if can_be_resized(large.configuration(name))]
    assert names == ["2d", "3d_fullres"]


def ball(radius: float, size: int = 48) -> np.ndarray:
    grid = np.indices((size,) * 3) - size / 2
    return (np.sqrt((grid**2).sum(axis=0)) <= radius).astype(np.int32)


def test_coarser_grids_keep_less_of_small_structures() -> None:
    small, large = (kept_dice([(ball(radius), (1.0, 1.0, 1.0))], (1.0, 1.0, 1.0)) for radius in (3, 15))
    assert small[1.0] == large[1.0] == 1
    assert list(large.values()) == sorted(large.values(), reverse=True)
    assert all(small[factor] < large[factor] for factor in FACTORS[1:])
    assert coarsest_factor(large, 0.97) > coarsest_factor(small, 0.97)


def test_a_plan_in_2d_keeps_the_slices_apart() -> None:
    slices = np.zeros((6, 64, 64), np.int32)
    slices[::2, 16:48, 16:48] = 1  # every other slice: coarser slices would lose it
    flat = kept_dice([(slices, (8.0, 1.0, 1.0))], (1.0, 1.0))
    assert flat[2.0] > 0.95
    assert kept_dice([(slices, (8.0, 1.0, 1.0))], (8.0, 1.0, 1.0))[2.0] < 0.9


def test_the_spacing_of_the_case_counts_not_its_voxels() -> None:
    fine = kept_dice([(ball(15), (0.5, 0.5, 0.5))], (1.0, 1.0, 1.0))
    assert fine[1.0] == pytest.approx(kept_dice([(ball(15), (1.0, 1.0, 1.0))], (1.0, 1.0, 1.0))[2.0])


def test_without_structures_nothing_is_coarsened() -> None:
    kept = kept_dice([(np.zeros((4, 8, 8), np.int32), (1.0, 1.0, 1.0))], (1.0, 1.0))
    assert coarsest_factor(kept, 0.99) == 1
