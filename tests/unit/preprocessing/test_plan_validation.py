"""Plans of other people: what they may name, and what they may not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from segwright.core.errors import ConfigError, ModelError, PlanError
from segwright.core.extensions.trust import TRUST_ALL, TRUST_NONE
from segwright.data.plan import Plan, architecture_block
from segwright.networks.architecture import is_known_network, parse_architecture
from segwright.networks.build import ArchitectureSpec, build_network, build_on_meta
from segwright.preprocessing.plan_validation import validate_components

SPLINE = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
CONFIGURATION: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [8, 8, 8],
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
    **{f"resampling_fn_{what}_kwargs": SPLINE for what in ("data", "seg", "probabilities")},
    "architecture": architecture_block(
        "PlainConvUNet",
        dims=3,
        features=(4, 8),
        kernel_sizes=((3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (2, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_convs=(1,),
    ),
    "batch_dice": False,
}
KWARGS: dict[str, Any] = CONFIGURATION["architecture"]["arch_kwargs"]
NETWORK = CONFIGURATION["architecture"]["network_class_name"]


def plan_with(top: dict[str, Any] | None = None, **changes: Any) -> Plan:
    document = {
        "dataset_name": "Dataset001_X",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": {**copy.deepcopy(CONFIGURATION), **changes}},
        "foreground_intensity_properties_per_channel": {},
        **(top or {}),
    }
    return Plan.from_json(document)


@pytest.mark.parametrize(
    "function", ["resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"]
)
def test_plans_of_nnunets_planners_are_known(function: str) -> None:
    kwargs = {**SPLINE, "memefficient_seg_resampling": False}
    plan = plan_with(resampling_fn_data=function, resampling_fn_data_kwargs=kwargs)
    validate_components(plan, plan.configuration("3d_fullres"))


@pytest.mark.parametrize(
    ("top", "changes", "message"),
    [
        ({"image_reader_writer": "evilmod.Reader"}, {}, r"image_reader_writer 'evilmod\.Reader'"),
        ({"label_manager": "evilmod.Net"}, {}, r"label_manager 'evilmod\.Net'"),
        ({}, {"preprocessor_name": "evilmod.Net"}, r"preprocessor_name 'evilmod\.Net'"),
        ({}, {"normalization_schemes": ["evilmod.Net"]}, r"normalization scheme 'evilmod\.Net'"),
        (
            {},
            {"normalization_schemes": ["evilmod:build"]},
            "names the normalization scheme 'evilmod:build'.*--trust-code",
        ),
        ({}, {"resampling_fn_data": "evilmod.build"}, r"resampling_fn_data: .*'evilmod\.build'"),
        ({}, {"resampling_fn_probabilities": "os.system"}, r"resampling_fn_probabilities: .*'os\.system'"),
        ({}, {"resampling_fn_seg_kwargs": {"order": [1]}}, "resampling_fn_seg_kwargs has a value of the wrong type"),
        ({}, {"patch_size": [40000, 56000, 40000]}, "at most 268435456"),
    ],
)
def test_anything_else_is_refused_by_name(top: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    plan = plan_with(top, **changes)
    with pytest.raises((PlanError, ModelError), match=message):
        validate_components(plan, plan.configuration("3d_fullres"))


def test_own_normalization_is_for_those_who_trust_it() -> None:
    reference = f"{__name__}:plan_with"
    plan = plan_with(normalization_schemes=[reference])
    for trust in (TRUST_ALL, TRUST_NONE.with_references(reference)):
        validate_components(plan, plan.configuration("3d_fullres"), trust=trust)


@pytest.mark.parametrize(
    ("path", "known"),
    [
        (NETWORK, True),
        ("dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet", True),
        ("PlainConvUNet", True),
        ("evilmod.PlainConvUNet", False),
        ("dynamic_network_architectures_evil.PlainConvUNet", False),
        ("dynamic_network_architectures.evil.Net", False),
    ],
)
def test_network_classes_are_known_by_their_whole_path(path: str, known: bool) -> None:
    assert is_known_network(path) is known
    if not known:
        with pytest.raises(ConfigError, match="not built in"):
            parse_architecture(path, KWARGS)


@pytest.mark.parametrize(
    "changes",
    [
        {"nonlin": "torch.nn.modules.evil.ReLU"},
        {"conv_op": "evilmod.Conv3d"},
        {"nonlin_kwargs": {"__class__": "x"}},
        {"norm_op_kwargs": {"num_features": 10**9}},
        {"norm_op_kwargs": [1]},
        {"n_stages": "4; import os"},
        {"n_stages": 10**9, "strides": 2},
        {"n_conv_per_stage": [10**9, 1]},
        {"features_per_stage": [10**30, 1]},
    ],
)
def test_arguments_that_no_network_takes_are_errors_of_the_plan(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build_on_meta(ArchitectureSpec(reference=NETWORK, kwargs={**KWARGS, **changes}), 1, 2)


def test_a_network_larger_than_any_in_use_is_an_error_of_the_plan() -> None:
    spec = ArchitectureSpec(reference=NETWORK, kwargs={**KWARGS, "features_per_stage": [10**6] * 2})
    with pytest.raises(ConfigError, match="89000039 million weights, at most 1074 million are allowed"):
        build_network(spec, 1, 2, deep_supervision=False)


@pytest.mark.parametrize(
    "strides", [[["a", "b", "c"], [2, 2, 2]], [None, [2, 2, 2]], [[[1], 1, 1], [2, 2, 2]]], ids=["text", "none", "list"]
)
def test_odd_values_in_a_configuration_are_errors_of_the_plan(strides: Any) -> None:
    block = {**CONFIGURATION["architecture"], "arch_kwargs": {**KWARGS, "strides": strides}}
    with pytest.raises(PlanError, match="3d_fullres"):
        plan_with(architecture=block).configuration("3d_fullres")
    with pytest.raises(PlanError, match="3d_fullres"):
        plan_with(inherits_from=["x"]).configuration("3d_fullres")
