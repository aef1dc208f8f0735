"""The rules behind a plan, one by one; vectors of nnU-Net behaviour 5.17."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.core.errors import PlanError
from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.data.plan import Plan
from segwright.planning.lowres import find_lowres
from segwright.planning.memory import feature_map_elements
from segwright.planning.planner import plan
from segwright.planning.presets import PRESETS, preset
from segwright.planning.rationale import decisions, explain
from segwright.planning.sizing import Budget, Sizing, size_configuration
from segwright.planning.spacing import target_spacing, transposition
from segwright.planning.topology import Topology, derive_topology

CASES: dict[str, tuple[tuple[float, ...], tuple[float, ...], int, int]] = {
    "H": ((1, 1, 1), (36, 50, 35), 260, 3),
    "B": ((1, 1, 1), (140, 171, 137), 484, 4),
    "L": ((1, 0.7676, 0.7676), (482, 512, 512), 131, 3),
    "A": ((5, 1.5625, 1.5625), (18, 237, 208), 200, 4),
    "P": ((3.6, 0.625, 0.625), (20, 320, 319.5), 32, 3),
    "R": ((999, 1, 1), (1, 1500, 1500), 804, 2),
    "T": ((999, 1, 1), (1, 224, 224), 100, 2),
}
"""nnU-Net behaviour 5.17: target spacing, median shape, number of training cases, entries of labels."""

VECTORS = [
    ("default", "H", (40, 56, 40), 9),
    ("default", "B", (128, 128, 128), 2),
    ("default", "L", (128, 128, 128), 2),
    ("default", "A", (20, 256, 224), 4),
    ("default", "P", (20, 320, 256), 2),
    ("resenc", "A", (20, 256, 224), 3),
    ("resenc-m", "H", (40, 56, 40), 58),
    ("resenc-m", "P", (20, 256, 256), 2),
    ("resenc-l", "H", (40, 56, 40), 178),
    ("resenc-l", "B", (160, 192, 160), 3),
    ("resenc-l", "L", (192, 192, 192), 2),
    ("resenc-l", "A", (20, 256, 224), 10),
    ("resenc-xl", "L", (224, 256, 224), 2),
    ("resenc-xl", "P", (20, 320, 320), 8),
    ("default", "H", (56, 40), 366),
    ("default", "R", (1280, 1024), 2),
    ("default", "T", (224, 224), 5),
    ("resenc", "T", (224, 224), 5),
    ("resenc-m", "R", (512, 512), 13),
    ("resenc-m", "H", (56, 40), 1618),
    ("resenc-l", "R", (896, 768), 13),
    ("resenc-l", "L", (512, 512), 35),
    ("resenc-xl", "H", (56, 40), 6711),
    ("resenc-xl", "P", (320, 320), 133),
]


def budget_of(name: str, case: str) -> Budget:
    _, _, cases, classes = CASES[case]
    family = preset(name)
    return Budget(preset=family, gpu_memory_gb=family.gpu_memory_gb, num_classes=classes, num_training=cases)


def sized(name: str, case: str, dims: int) -> Sizing:
    spacing, shape, cases, _ = CASES[case]
    voxels = math.prod(shape) * cases
    return size_configuration(spacing[-dims:], shape[-dims:], dataset_voxels=voxels, budget=budget_of(name, case))


@pytest.mark.parametrize(("name", "case", "patch", "batch"), VECTORS)
def test_patch_and_batch_size(name: str, case: str, patch: tuple[int, ...], batch: int) -> None:
    sizing = sized(name, case, len(patch))
    assert (sizing.topology.patch_size, sizing.batch_size) == (patch, batch)


@pytest.mark.parametrize(
    ("case", "first", "steps"),
    [("L", (224, 320, 320), 13), ("B", (160, 192, 160), 4), ("P", (20, 320, 320), 1)],
)
def test_shrinking_takes_the_recorded_steps(case: str, first: tuple[int, ...], steps: int) -> None:
    sizing = sized("default", case, 3)
    assert (sizing.first_patch, sizing.shrink_steps) == (first, steps)


@pytest.mark.parametrize(
    ("name", "spacing", "shape", "patch"),
    [
        ("default", (2.500080, 1.919062, 1.919062), (193, 205, 205), (128, 128, 128)),
        ("resenc-l", (1.652848, 1.268726, 1.268726), (292, 310, 310), (192, 192, 192)),
        ("resenc-xl", (1.384234, 1.062538, 1.062538), (348, 370, 370), (224, 256, 224)),
    ],
)
def test_low_resolution(name: str, spacing: tuple[float, ...], shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    full_spacing, full_shape, _, _ = CASES["L"]
    lowres = find_lowres(full_spacing, full_shape, sized(name, "L", 3), budget_of(name, "L")).lowres
    assert lowres is not None
    assert lowres.spacing == pytest.approx(spacing, abs=1e-6)
    assert (lowres.median_shape, lowres.sizing.topology.patch_size) == (shape, patch)


@pytest.mark.parametrize("case", ["H", "B", "A", "P"])
def test_low_resolution_is_not_planned_for_small_images(case: str) -> None:
    spacing, shape, _, _ = CASES[case]
    assert find_lowres(spacing, shape, sized("default", case, 3), budget_of("default", case)).lowres is None


def test_low_resolution_is_dropped_where_it_saves_little() -> None:
    # A patch of 128^3 covers just under a quarter of 204^3: one step of 1.03 suffices, 9 % fewer voxels.
    spacing, shape = (1.0, 1.0, 1.0), (204.0, 204.0, 204.0)
    budget = budget_of("default", "H")
    full = size_configuration(spacing, shape, dataset_voxels=1e9, budget=budget)
    assert math.prod(full.topology.patch_size) / math.prod(shape) < 0.25
    search = find_lowres(spacing, shape, full, budget)
    assert search.lowres is None
    assert "times fewer voxels, less than 2" in search.reason


@pytest.mark.parametrize(
    ("name", "spacing", "patch", "elements"),
    [
        ("default", (1, 1, 1), (128, 128, 128), 452796416),
        ("default", (1, 1), (512, 512), 82886656),
        ("resenc", (1, 1, 1), (128, 128, 128), 557420544),
        ("resenc", (1, 1), (512, 512), None),
    ],
)
def test_memory_estimate(name: str, spacing: Sequence[float], patch: Sequence[int], elements: int | None) -> None:
    family, topology = preset(name), derive_topology(spacing, patch)
    if elements is None:  # the recorded vector has 7 stages, one less than planned
        topology = Topology(
            strides=topology.strides[:7],
            kernel_sizes=topology.kernel_sizes[:7],
            divisor=(64, 64),
            patch_size=(512, 512),
        )
        elements = 129531904
    stages, most = topology.num_stages, 512 if len(patch) == 2 else 320
    found = feature_map_elements(
        family.network,
        topology,
        features=[min(most, 32 * 2**stage) for stage in range(stages)],
        encoder_blocks=family.encoder_blocks[:stages],
        decoder_convs=family.decoder_convs[: stages - 1],
        num_classes=3,
    )
    assert found == elements


def test_topology_of_thick_slices() -> None:
    topology = derive_topology((5, 1.5625, 1.5625), (18, 237, 208))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert topology.kernel_sizes == ((1, 3, 3), *((3, 3, 3),) * 5)
    assert (topology.divisor, topology.patch_size) == ((4, 32, 32), (20, 256, 224))


@given(
    spacing=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
    patch=st.lists(st.integers(1, 400), min_size=3, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_topology_always_divides_its_patch(spacing: list[float], patch: list[int]) -> None:
    topology = derive_topology(spacing, patch)
    for axis in range(3):
        divisor = math.prod(stride[axis] for stride in topology.strides)
        assert divisor == topology.divisor[axis]
        assert 0 <= topology.patch_size[axis] - patch[axis] < divisor
        assert topology.patch_size[axis] % divisor == 0
        assert divisor == 1 or topology.patch_size[axis] // divisor >= 4
    assert len(topology.kernel_sizes) == topology.num_stages


def fingerprint_of(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], *, kept: float = 1.0
) -> Fingerprint:
    keys = ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5")
    document: dict[str, Any] = {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "median_relative_size_after_cropping": kept,
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(keys, 2.0)},
    }
    return Fingerprint.model_validate(document)


ISOTROPIC = fingerprint_of([[1, 1, 1]] * 3, [[36, 50, 35]] * 3)
BIG = fingerprint_of([[1, 0.767578125, 0.767578125]] * 3, [[482, 512, 512]] * 3)
DESCRIPTION = DatasetDescription.model_validate(
    {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 20,
        "file_ending": ".nii.gz",
    }
)


def planned(fingerprint: Fingerprint = ISOTROPIC, name: str = "default", **options: Any) -> Plan:
    options.setdefault("preset", preset(name))
    return plan(fingerprint, DESCRIPTION, dataset_name="Dataset001_X", reader="SimpleITKIO", **options)


def test_thick_slices_get_the_tenth_percentile() -> None:
    spacings = [[value, 0.5, 0.6] for value in (2.0, 3.0, 4.0, 5.0, 6.0)]
    target = target_spacing(fingerprint_of(spacings, [[20, 300, 300]] * 5))
    assert target.value == pytest.approx((2.4, 0.5, 0.6), abs=1e-12)
    assert "10th percentile" in target.reason


def test_thick_slices_stay_the_coarsest_axis() -> None:
    spacings = [[0.3, 0.5, 0.6], [5, 0.5, 0.6], [5, 0.5, 0.6]]
    assert target_spacing(fingerprint_of(spacings, [[20, 300, 300]] * 3)).value == pytest.approx((1.24, 0.5, 0.6))
    spacings[1][0] = 0.3
    spacings.append([5, 0.5, 0.6])
    target = target_spacing(fingerprint_of(spacings, [[20, 300, 300]] * 4))
    assert target.value == pytest.approx((0.60001, 0.5, 0.6), abs=1e-12)


def test_many_thick_slices_keep_the_median() -> None:
    spacings = [[value, 0.5, 0.6] for value in (2.0, 3.0, 4.0)]
    assert target_spacing(fingerprint_of(spacings, [[100, 300, 300]] * 3)).value == (3.0, 0.5, 0.6)


@pytest.mark.parametrize(
    ("spacing", "order"),
    [((1, 1, 1), (0, 1, 2)), ((1, 3, 3), (1, 0, 2)), ((1, 2, 3), (2, 0, 1)), ((4, 2, 3), (0, 1, 2))],
)
def test_the_coarsest_axis_comes_first(spacing: tuple[float, ...], order: tuple[int, ...]) -> None:
    assert transposition(spacing) == order
    assert transposition(spacing, suppress=True) == (0, 1, 2)


def test_axis_order_is_kept_on_request() -> None:
    permuted = fingerprint_of([[1, 1, 4]] * 3, [[200, 180, 90]] * 3)
    assert planned(permuted).transpose_forward == (2, 0, 1)
    assert planned(permuted).configuration("2d").spacing == (1.0, 1.0)
    kept = planned(permuted, suppress_transpose=True)
    assert kept.transpose_forward == (0, 1, 2)
    assert kept.configuration("2d").spacing == (1.0, 4.0)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "default"])
def test_residual_presets_share_data_with_the_default(name: str) -> None:
    shared = planned(BIG, name)
    assert shared.configuration("2d").data_identifier == "nnUNetPlans_2d"
    assert shared.configuration("3d_fullres").data_identifier == "nnUNetPlans_3d_fullres"
    assert shared.configuration("3d_cascade_fullres").data_identifier == "nnUNetPlans_3d_fullres"
    assert shared.configuration("3d_lowres").data_identifier == f"{preset(name).plans_name}_3d_lowres"


@pytest.mark.parametrize("options", [{"spacing": (2.0, 1.0, 1.0)}, {"suppress_transpose": True}])
def test_other_data_is_not_shared(options: dict[str, Any]) -> None:
    own = planned(ISOTROPIC, "resenc-m", **options)
    assert own.configuration("3d_fullres").data_identifier == "nnUNetResEncUNetMPlans_3d_fullres"


def test_plans_name_is_an_option() -> None:
    named = planned(plans_name="Mine")
    assert named.plans_name == "Mine"
    assert named.configuration("3d_fullres").data_identifier == "Mine_3d_fullres"


def test_variants_without_a_planner_of_nnunet_are_still_named() -> None:
    variant = planned(preset=preset("resenc-m", "torch"))
    assert (variant.plans_name, variant.experiment_planner_used) == (
        "nnUNetResEncUNetMPlans_torchres",
        "nnUNetPlannerResEncM",
    )
    assert variant.configuration("3d_fullres").resampling_fn_data == "resample_torch_fornnunet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resenc-q",), "unknown preset 'resenc-q'; did you mean 'resenc"),
        (("default", "tourch"), "unknown resampling 'tourch'; did you mean 'torch'"),
    ],
)
def test_unknown_presets_get_the_nearest_name(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        preset(*arguments)


@pytest.mark.parametrize(
    ("fingerprint", "options", "message"),
    [
        (fingerprint_of([], []), {}, "at least one case"),
        (fingerprint_of([[1, 1, 1]], []), {}, "1 spacings and 0 shapes"),
        (fingerprint_of([[1, 0, 1]], [[5, 5, 5]]), {}, "case 0 has spacing"),
        (ISOTROPIC, {"gpu_memory_gb": 0.0}, "GPU memory target 0.0 GB"),
        (ISOTROPIC, {"spacing": (1.0, 1.0)}, "expected 3 positive numbers"),
        (ISOTROPIC, {"spacing": (1.0, 1.0, -2.0)}, "expected 3 positive numbers"),
        (ISOTROPIC, {"spacing": (1.0, 1.0, 1e4)}, "no patch can be planned"),
        (BIG, {"gpu_memory_gb": 1e-9}, "no patch fits the memory target"),
    ],
)
def test_what_cannot_be_planned_is_told(fingerprint: Fingerprint, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        planned(fingerprint, **options)


def test_hand_made_configurations_survive() -> None:
    document = planned().to_json()
    document["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    document["configurations"]["3d_fullres"]["batch_size"] = 77
    again = planned(existing=Plan.from_json(document))
    assert again.configuration_names == ("2d", "3d_fullres", "mine")
    assert again.configuration("mine").batch_size == 3
    assert again.configurations["3d_fullres"] == planned().configurations["3d_fullres"]
    assert [entry.decision for entry in decisions(again) if entry.configuration == "mine"] == ["kept"]


def test_masked_normalisation_needs_much_cropping() -> None:
    document = {**DESCRIPTION.raw(), "channel_names": {"0": "T1", "1": "ct"}}
    description = DatasetDescription.model_validate(document)
    masks = []
    for kept in (0.75, 0.74):
        made = plan(
            fingerprint_of([[1, 1, 1]], [[36, 50, 35]], kept=kept),
            description,
            dataset_name="x",
            reader="SimpleITKIO",
            preset=preset("default"),
        )
        masks.append(made.configuration("2d").use_mask_for_norm)
    assert masks == [(False, False), (True, False)]


def test_every_decision_has_its_reason() -> None:
    made = planned(BIG)
    by_configuration: dict[str, set[str]] = {}
    for entry in decisions(made):
        assert entry.reason
        by_configuration.setdefault(entry.configuration, set()).add(entry.decision)
    assert by_configuration["all"] >= {"target spacing", "axis order", "normalisation", "resampling"}
    assert "low resolution and cascade" in by_configuration["all"]
    for name in ("2d", "3d_lowres", "3d_fullres"):
        assert by_configuration[name] == {
            "patch size",
            "batch size",
            "topology",
            "memory estimate, GB",
            "batch dice",
        }
    text = explain(made)
    assert "shortened 13 times" in text
    assert "3d_lowres:" in text


def test_plans_of_nnunet_explain_nothing() -> None:
    document = planned().to_json()
    del document["segwright"]
    assert "no reasons" in explain(Plan.from_json(document))


def test_a_damaged_record_of_reasons_is_told() -> None:
    document = planned().to_json()
    document["segwright"]["rationale"][0]["why"] = "x"
    with pytest.raises(PlanError, match=r"segwright\.rationale"):
        explain(Plan.from_json(document))
