"""A small plan, a model folder with random weights and images to predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from segwright.data.plan import Plan
from segwright.networks.build import build_network
from segwright.networks.checkpoint import save_weights
from segwright.networks.cpu import library as compiled

DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "inner": 1, "outer": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def configuration(dims: int) -> dict[str, Any]:
    """Return a configuration for images of 1 mm, network grid 1.5 mm."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"test_{dims}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8] * dims,
        "median_image_size_in_voxels": [8.0] * dims,
        "spacing": [1.5] * dims,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [[3] * dims] * 2,
                "strides": [[1] * dims, [2] * dims],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }


def small_plan() -> Plan:
    """Return a plan with a 2D and a 3D configuration and permuted axes."""
    return Plan.from_json(
        {
            "dataset_name": "Dataset001_Test",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [2, 0, 1],
            "transpose_backward": [1, 2, 0],
            "configurations": {"2d": configuration(2), "3d_fullres": configuration(3)},
            "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
        }
    )


def write_model(
    parent: Path,
    plan: Plan,
    *folds: int | str,
    name: str = "3d_fullres",
    checkpoint: str = "final",
    seed: int = 0,
) -> Path:
    """Write a model folder with random weights below `parent`; `name` is the configuration's."""
    folder = parent / f"Trainer__nnUNetPlans__{name}"
    folder.mkdir(exist_ok=True)
    plan.save(folder / "plans.json")
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    block = plan.configurations[name]["architecture"]
    for fold in folds:
        offset = fold if isinstance(fold, int) else 99
        network = build_network(
            block, 1, 3, deep_supervision=True, generator=torch.Generator().manual_seed(seed + offset)
        )
        path = folder / f"fold_{fold}" / f"checkpoint_{checkpoint}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_weights(path, network.state_dict())
        header = {
            "schema_version": 1,
            "trainer": "Trainer",
            "configuration": name,
            "fold": fold,
            "network": {"reference": block["network_class_name"], "kwargs": block["arch_kwargs"]},
            "mirror_axes": list(range(len(plan.configuration(name).patch_size))),
            "epoch": 3,
        }
        path.with_suffix(".json").write_text(json.dumps(header))
    return folder


def write_images(folder: Path) -> Path:
    """Write two cases of different, anisotropic shape and geometry into a new folder; return it."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (("a", (9, 14, 11)), ("b", (7, 10, 13))):
        array = generator.normal(100, 20, shape).astype(np.float32)
        array[:2] = 0
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.1, 1.2))
        image.SetOrigin((5.0, -3.0, 2.0))
        sitk.WriteImage(image, str(folder / f"{name}_0000.nii.gz"))
    return folder


@pytest.fixture
def plan() -> Plan:
    """Return `small_plan`."""
    return small_plan()


@pytest.fixture
def make_model(tmp_path: Path, plan: Plan) -> Callable[..., Path]:
    """Return a function that writes a model folder; it names the folds and the configuration."""
    return partial(write_model, tmp_path, plan)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with two cases, see `write_images`."""
    return write_images(tmp_path / "images")


@pytest.fixture
def without_fp16_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is not fast at float16."""
    monkeypatch.setattr(compiled, "fp16_libraries", tuple)
