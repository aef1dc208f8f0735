"""The managers of plans and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.compat.nnunet.names.labels import LabelManager, convert_labelmap_to_one_hot
from segwright.compat.nnunet.names.plans import PlansManager, determine_num_input_channels
from segwright.core.errors import PlanError
from segwright.core.files.json_documents import write_json
from segwright.data.plan import architecture_block

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
OLD_KEYS = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 8,
    "unet_max_num_features": 12,
    "n_conv_per_stage_encoder": [2, 2],
    "n_conv_per_stage_decoder": [2],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2]],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3]],
    "num_pool_per_axis": [0, 1, 1],
}


@pytest.fixture
def plans() -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "median_image_size_in_voxels": [8.0, 16.0, 16.0],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities_kwargs": resampling,
        "batch_dice": True,
        "architecture": architecture_block(
            "PlainConvUNet",
            dims=3,
            features=(8, 12),
            kernel_sizes=((1, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2)),
            encoder_blocks=(2, 2),
            decoder_convs=(2,),
        ),
    }
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres", "batch_size": 5}
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 1.0}},
        "configurations": {"3d_fullres": fullres, "3d_cascade_fullres": cascade},
    }


def test_change_of_the_patch_is_seen_everywhere(plans: dict[str, Any]) -> None:
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    configuration.configuration["patch_size"] = [16, 16, 16]
    assert manager.get_configuration("3d_fullres").patch_size == [16, 16, 16]
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]
    assert manager.to_plan().configuration("3d_fullres").patch_size == (16, 16, 16)


def test_change_of_an_inherited_configuration_is_saved(plans: dict[str, Any]) -> None:
    manager = PlansManager(plans)
    cascade = manager.get_configuration("3d_cascade_fullres")
    cascade.configuration["patch_size"] = [4, 4, 4]
    assert (cascade.batch_size, cascade.previous_stage_name) == (5, "3d_lowres")
    assert manager.document()["configurations"]["3d_cascade_fullres"]["patch_size"] == [4, 4, 4]
    assert manager.get_configuration("3d_fullres").patch_size == [8, 16, 16]


def test_unknown_configuration_is_refused(plans: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="did you mean '3d_fullres'"):
        PlansManager(plans).get_configuration("3d_fulres")


def test_circle_is_refused(plans: dict[str, Any]) -> None:
    plans["configurations"]["3d_fullres"]["inherits_from"] = "3d_cascade_fullres"
    with pytest.raises(PlanError, match="in a circle"):
        PlansManager(plans).get_configuration("3d_fullres")


@pytest.mark.parametrize("is_old", [False, True])
def test_names_of_2023_and_2024(plans: dict[str, Any], is_old: bool) -> None:
    document = plans["configurations"]["3d_fullres"]
    if is_old:
        del document["architecture"]
        document.update(OLD_KEYS)
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    assert configuration.network_arch_class_name.endswith("unet.PlainConvUNet")
    assert configuration.network_arch_init_kwargs["features_per_stage"] == [8, 12]
    assert "conv_op" in configuration.network_arch_init_kwargs_req_import
    for name, value in OLD_KEYS.items():
        assert getattr(configuration, name) == value
    assert isinstance(configuration.pool_op_kernel_sizes[1:], list)
    assert configuration.next_stage_names is None


def test_plan_is_read_from_a_file(plans: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "plans.json", plans)
    manager = PlansManager(str(tmp_path / "plans.json"))
    assert manager.dataset_name == "Dataset004_Hippocampus"
    assert manager.available_configurations == ["3d_fullres", "3d_cascade_fullres"]
    assert manager.image_reader_writer_class().reader == "SimpleITKIO"


def test_resampling_is_bound_to_the_plan(plans: dict[str, Any]) -> None:
    resample = PlansManager(plans).get_configuration("3d_fullres").resampling_fn_probabilities
    assert resample(np.ones((2, 4, 4, 4), np.float32), (4, 8, 8), (3, 2, 2), (3, 1, 1)).shape == (2, 4, 8, 8)
    labels = PlansManager(plans).get_configuration("3d_fullres").resampling_fn_seg
    assert labels(np.ones((1, 4, 4, 4), np.int16), (4, 8, 8), (3, 2, 2), (3, 1, 1)).max() == 1


def test_input_channels_of_a_cascade(plans: dict[str, Any]) -> None:
    manager = PlansManager(plans)
    assert determine_num_input_channels(manager, "3d_fullres", DATASET) == 1
    cascade = manager.get_configuration("3d_cascade_fullres")
    assert determine_num_input_channels(manager, cascade, DATASET) == 3


def test_labels(plans: dict[str, Any]) -> None:
    labels = PlansManager(plans).get_label_manager({**DATASET, "labels": {**DATASET["labels"], "ignore": 3}})  # type: ignore[dict-item]
    assert (labels.all_labels, labels.foreground_labels, labels.num_segmentation_heads) == ([0, 1, 2], [1, 2], 3)
    assert (labels.has_regions, labels.has_ignore_label, labels.ignore_label) == (False, True, 3)
    assert labels.foreground_regions is None


def test_regions_and_the_labels_below_them() -> None:
    declared = {"background": 0, "whole": [1, 2], "core": 2}
    regions = LabelManager(declared, [1, 2])
    assert (regions.foreground_regions, regions.num_segmentation_heads) == ([(1, 2), 2], 2)
    plain = LabelManager(declared, [1, 2], force_use_labels=True)
    assert (plain.has_regions, plain.all_labels) == (False, [0, 1, 2])
    logits = np.array([5.0, -5.0], np.float32).reshape(2, 1, 1, 1)
    assert regions.convert_logits_to_segmentation(logits).item() == 1
    assert regions.apply_inference_nonlin(logits).flatten().tolist() == pytest.approx([0.9933, 0.0067], abs=1e-4)


def test_logits_and_probabilities_become_labels() -> None:
    labels = LabelManager(DATASET["labels"], None)  # type: ignore[arg-type]
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = logits.argmax(0)
    assert torch.equal(labels.convert_logits_to_segmentation(logits), expected)  # type: ignore[arg-type]
    assert np.array_equal(labels.convert_probabilities_to_segmentation(logits.softmax(0).numpy()), expected.numpy())


def test_own_nonlinearity_decides() -> None:
    labels = LabelManager(DATASET["labels"], None, inference_nonlin=lambda logits: -logits)  # type: ignore[arg-type]
    logits = torch.tensor([1.0, 2.0, 0.0]).reshape(3, 1, 1, 1)
    assert labels.convert_logits_to_segmentation(logits).item() == 2


def test_outside_of_the_crop_is_background() -> None:
    labels = LabelManager(DATASET["labels"], None)  # type: ignore[arg-type]
    inside = np.full((3, 1, 1, 1), 0.5, np.float32)
    whole = labels.revert_cropping_on_probabilities(inside, [[1, 2], [0, 1], [0, 1]], (3, 1, 1))
    assert whole[:, :, 0, 0].T.tolist() == [[1, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0]]


def test_one_hot_of_a_label_map() -> None:
    array = np.array([[0, 1, 2, 3]])
    assert convert_labelmap_to_one_hot(array, [1, 3]).tolist() == [[[0, 1, 0, 0]], [[0, 0, 0, 1]]]
    assert convert_labelmap_to_one_hot(torch.from_numpy(array), [1], torch.bool).dtype == torch.bool
    assert convert_labelmap_to_one_hot(array, [1, 255]).dtype == np.uint16
    assert LabelManager.filter_background([0, 1, (0,), (0, 1), [0, 0]]) == [1, (0, 1)]
