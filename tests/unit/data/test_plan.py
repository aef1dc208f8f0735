"""The plan value: reading, inheritance, upgrades, and what an edited plan is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import PlanError
from segwright.data.plan import Configuration, Plan, architecture_block


def configuration_document(**changes: Any) -> dict[str, Any]:
    """Return a small valid 3D configuration."""
    kwargs: dict[str, Any] = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "median_image_size_in_voxels": [9.0, 20.5, 18.0],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
        "use_mask_for_norm": [False, False],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg_kwargs": kwargs,
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": kwargs,
        "architecture": architecture_block(
            "PlainConvUNet",
            dims=3,
            features=(32, 64, 128),
            kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            encoder_blocks=(2, 2, 2),
            decoder_convs=(2, 2),
        ),
        "batch_dice": False,
        **changes,
    }


def plan_document(**configurations: Any) -> dict[str, Any]:
    statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    return {
        "dataset_name": "Dataset001_X",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": [9, 20, 18],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
        "configurations": {"3d_fullres": configuration_document(), **configurations},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
    }


def edited(**arch_kwargs: Any) -> dict[str, Any]:
    document = configuration_document()
    document["architecture"]["arch_kwargs"].update(arch_kwargs)
    return document


def test_configuration_gives_typed_values() -> None:
    configuration = Plan.from_json(plan_document()).configuration("3d_fullres")
    assert configuration.patch_size == (8, 16, 16)
    assert configuration.dims == 3
    assert configuration.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert configuration.architecture.kw_requires_import == ("conv_op", "norm_op", "dropout_op", "nonlin")


def test_a_plan_is_written_as_it_was_read(tmp_path: Path) -> None:
    document = {**plan_document(), "pretrain_info": {"mode": "x"}, "segwright": {"rationale": []}}
    Plan.from_json(document).save(tmp_path / "plans.json")
    assert (tmp_path / "plans.json").read_text() == json.dumps(document, indent=4) + "\n"


def test_changing_what_to_json_gave_leaves_the_plan_alone() -> None:
    plan = Plan.from_json(plan_document())
    plan.to_json()["configurations"]["3d_fullres"]["batch_size"] = 99
    assert plan.configuration("3d_fullres").batch_size == 2


def test_legacy_name_of_the_intensities_is_read() -> None:
    document = plan_document()
    document["foreground_intensity_properties_by_modality"] = document.pop(
        "foreground_intensity_properties_per_channel"
    )
    assert Plan.from_json(document).foreground_intensity_properties_per_channel["0"]["mean"] == 1.0


def test_a_child_overwrites_its_parent_key_by_key() -> None:
    plan = Plan.from_json(
        plan_document(
            child={"inherits_from": "3d_fullres", "batch_size": 7},
            grandchild={"inherits_from": "child", "previous_stage": "3d_lowres", "spacing": [4, 2, 2]},
        )
    )
    grandchild = plan.configuration("grandchild")
    assert (grandchild.batch_size, grandchild.spacing, grandchild.patch_size) == (7, (4.0, 2.0, 2.0), (8, 16, 16))
    assert (grandchild.inherits_from, grandchild.previous_stage) == ("child", "3d_lowres")
    assert plan.configuration("3d_fullres").batch_size == 2


def test_inheriting_in_a_circle_is_refused() -> None:
    plan = Plan.from_json(plan_document(a={"inherits_from": "b"}, b={"inherits_from": "a"}))
    with pytest.raises(PlanError, match="circle.*a -> b -> a"):
        plan.configuration("a")


def test_an_unknown_parent_is_named() -> None:
    plan = Plan.from_json(plan_document(a={"inherits_from": "3d_fulres"}))
    with pytest.raises(PlanError, match="'3d_fulres', which 'a' inherits from; did you mean '3d_fullres'"):
        plan.configuration("a")


def test_an_unknown_configuration_gets_the_nearest_name() -> None:
    with pytest.raises(PlanError, match="no configuration '3d_fulres'; did you mean '3d_fullres'"):
        Plan.from_json(plan_document()).configuration("3d_fulres")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (configuration_document(patch_size=[8, 16, 18]), r"18 in axis 2 is not divisible by 4.*take 20"),
        (configuration_document(patch_size=[16, 16]), "spacing has 3 entries, patch_size has 2"),
        (configuration_document(patch_size=[16]), "give 2 or 3 positive numbers"),
        (configuration_document(patch_size=[0, 16, 16]), "give 2 or 3 positive numbers"),
        (configuration_document(patch_size=[8.5, 16, 16]), r"patch_size\.0"),
        (configuration_document(spacing=[1, -1, 1]), "spacing.*every entry must be a positive number"),
        (configuration_document(spacing=[1, 1]), "spacing has 2 entries"),
        (configuration_document(median_image_size_in_voxels=[3]), "median_image_size_in_voxels has 1 entries"),
        (configuration_document(batch_size=0), "batch_size"),
        (configuration_document(use_mask_for_norm=[True]), "use_mask_for_norm has 1 entries"),
        (edited(kernel_sizes=[[3, 3, 3]]), "kernel_sizes has 1 entries; 3 strides need 3"),
        (edited(n_conv_per_stage_decoder=[2]), "n_conv_per_stage_decoder has 1 entries; 3 strides need 2"),
        (edited(n_stages=4), "n_stages is 4, but there are 3 strides"),
        (edited(strides=[[1, 1], [2, 2], [2, 2]]), r"strides has the entry \[1, 1\]"),
        (edited(conv_op="torch.nn.modules.conv.Conv2d"), "conv_op is .*Conv2d, but patch_size has 3"),
        (configuration_document(patch_size=[2**20, 2**20, 16]), "patch_size: .*at most 268435456 are computed"),
        (configuration_document(batch_size=10**8), "batch_size is 100000000; 1048576 patches of size .* are the most"),
        (configuration_document(batch_size=-1), "batch_size: Input should be greater than"),
        (configuration_document(batch_size=2**60), "batch_size: Input should be less than"),
        (configuration_document(spacing=[1, float("nan"), 1]), "spacing.*every entry must be a positive number"),
        (configuration_document(spacing=[1, 1e-300, 1]), "spacing.*every entry must be a positive number"),
        (configuration_document(median_image_size_in_voxels=[1, float("inf"), 1]), "median_image.*finite number"),
        (edited(strides=[[1, 1, 1]] * 10**5), "there are 100000 strides; at most 64 stages are built"),
        (edited(strides=[[1, 1, 1], None, [2, 2, 2]]), "a value has the wrong type"),
    ],
)
def test_an_edited_configuration_that_cannot_work_is_reported_why(document: dict[str, Any], message: str) -> None:
    plan = Plan.from_json(plan_document(mine=document))
    with pytest.raises(PlanError, match=message) as caught:
        plan.configuration("mine")
    assert "plans 'nnUNetPlans', configuration 'mine'" in str(caught.value)


def test_a_missing_key_is_named() -> None:
    document = configuration_document()
    del document["batch_dice"]
    with pytest.raises(PlanError, match="batch_dice: Field required"):
        Configuration.from_json(document)


def test_an_architecture_without_strides_is_left_alone() -> None:
    own = {"network_class_name": "my.nets:build", "arch_kwargs": {"width": 3}}
    configuration = Configuration.from_json(configuration_document(architecture=own, patch_size=[7, 9, 11]))
    assert configuration.strides == ()


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        ([0, 0, 1], [0, 1, 2], "must list every axis once"),
        ([*range(10**5)], [*range(10**5)], "must list every axis once"),
        ([2, 0, 1], [2, 0, 1], r"the inverse .* is \[1, 2, 0\]"),
    ],
)
def test_a_transposition_must_be_reversible(forward: list[int], backward: list[int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json({**plan_document(), "transpose_forward": forward, "transpose_backward": backward})


@pytest.mark.parametrize("key", ["original_median_spacing_after_transp", "original_median_shape_after_transp"])
@pytest.mark.parametrize("value", [0, -1, 10**400])
def test_medians_must_be_positive(key: str, value: int) -> None:
    with pytest.raises(PlanError, match=f"{key}.*"):
        Plan.from_json({**plan_document(), key: [1, value, 1]})


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("{}", "dataset_name"), ("[]", "plans.json")])
def test_a_file_that_is_no_plan_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(tmp_path / "plans.json")
    assert str(tmp_path / "plans.json") in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("UNet_base_num_features", "x"),
        ("unet_max_num_features", None),
        ("pool_op_kernel_sizes", [[1, 1, 1]] * 10**6),
        ("UNet_class_name", ["x"]),
    ],
)
def test_old_plans_with_values_of_the_wrong_kind_are_refused(key: str, value: Any) -> None:
    with pytest.raises(PlanError, match=key):
        Configuration.from_json({**old_document("Generic_UNet"), "UNet_class_name": "PlainConvUNet", key: value})


def old_document(network: str) -> dict[str, Any]:
    """Return a configuration as early nnU-Net v2 wrote it (nnU-Net behaviour 5.15)."""
    document = configuration_document()
    del document["architecture"]
    return {
        **document,
        "UNet_class_name": network,
        "UNet_base_num_features": 32,
        "unet_max_num_features": 64,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    }


@pytest.mark.parametrize(
    ("network", "encoder_key"),
    [("PlainConvUNet", "n_conv_per_stage"), ("ResidualEncoderUNet", "n_blocks_per_stage")],
)
def test_old_plans_get_an_architecture_block(network: str, encoder_key: str) -> None:
    old = old_document(network)
    before = copy.deepcopy(old)
    plan = Plan.from_json(plan_document(old=old, child={"inherits_from": "old", "batch_size": 5}))
    block = plan.configuration("child").architecture
    assert block.network_class_name == f"dynamic_network_architectures.architectures.unet.{network}"
    assert block.arch_kwargs["features_per_stage"] == [32, 64, 64]
    assert block.arch_kwargs[encoder_key] == [2, 2, 2]
    assert block.arch_kwargs["conv_op"] == "torch.nn.modules.conv.Conv3d"
    assert not {"UNet_class_name", "num_pool_per_axis"} & set(plan.configuration("child").model_extra or {})
    assert old == before


def test_an_old_plan_of_an_unknown_network_is_refused() -> None:
    with pytest.raises(PlanError, match="UNet_class_name 'PlainConvUNe' is unknown; did you mean 'PlainConvUNet'"):
        Configuration.from_json(old_document("PlainConvUNe"))


def test_an_old_plan_with_a_gap_is_refused() -> None:
    old = old_document("PlainConvUNet")
    del old["conv_kernel_sizes"]
    with pytest.raises(PlanError, match="without conv_kernel_sizes"):
        Configuration.from_json(old)


def test_the_hash_in_kept_checkpoints_stays() -> None:
    """Models whose plan has another hash are refused, so a new field must not change that of a plan without it."""
    kept = "c07beb61be5198bffdd5c1e00fa929104467f769100ccb29fb578d5548fea54e"
    assert Plan.from_json(plan_document()).setup_hash("3d_fullres") == kept
