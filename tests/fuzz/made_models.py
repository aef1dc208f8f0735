"""Small good files for the fuzz tests: a plan, a dataset.json, and a model folder as a training leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from segwright.networks.build import ArchitectureSpec, build_network
from segwright.training.checkpointing import checkpoints

DATASET: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
    "numTraining": 5,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "SimpleITKIO",
    "description": "anything",
}
INTENSITIES = {
    "mean": 1.0, "median": 1.0, "std": 0.5, "min": 0.0, "max": 9.0, "percentile_99_5": 8.0, "percentile_00_5": 0.1,
}  # fmt: skip
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
ARCH_KWARGS: dict[str, Any] = {
    "n_stages": 2,
    "features_per_stage": [4, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "n_conv_per_stage": [1, 1],
    "n_conv_per_stage_decoder": [1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_Test",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
    "original_median_shape_after_transp": [9, 9, 9],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "configurations": {
        "3d_fullres": {
            "data_identifier": "test_3d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [8, 8, 8],
            "median_image_size_in_voxels": [8.0, 8.0, 8.0],
            "spacing": [1.5, 1.5, 1.5],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
            "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": RESAMPLING,
            "architecture": {
                "network_class_name": NETWORK,
                "arch_kwargs": ARCH_KWARGS,
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "batch_dice": True,
        },
        "copy": {"inherits_from": "3d_fullres", "batch_size": 3},
    },
    "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
}
FINGERPRINT: dict[str, Any] = {
    "spacings": [[1.0, 1.0, 1.0], [1.0, 2.0, 1.0]],
    "shapes_after_crop": [[9, 9, 9], [9, 8, 7]],
    "median_relative_size_after_cropping": 0.9,
    "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
}
MEASURES = {"Dice": 0.5, "FN": 3, "FP": 4, "IoU": 0.4, "TN": 99, "TP": 5, "n_pred": 9, "n_ref": 8, "HD95": 2.5}
SUMMARY: dict[str, Any] = {
    "foreground_mean": MEASURES,
    "mean": {"(1, 2)": MEASURES, "2": MEASURES},
    "metric_per_case": [
        {
            "metrics": {"(1, 2)": MEASURES, "2": {**MEASURES, "Dice": float("nan")}},
            "prediction_file": f"out/{name}.nii.gz",
            "reference_file": f"labelsTr/{name}.nii.gz",
        }
        for name in ("a", "b")
    ],
}


def write(path: Path, document: object) -> Path:
    """Write a document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def make_model(folder: Path) -> Path:
    """Write a model folder with one finished fold and return the fold's folder."""
    write(folder / "plans.json", PLANS)
    write(folder / "dataset.json", DATASET)
    write(folder / "dataset_fingerprint.json", FINGERPRINT)
    fold = folder / "fold_0"
    write(fold / "validation" / "summary.json", SUMMARY)
    write(fold / "train.json", {"schema_version": 1, "configuration": "3d_fullres", "config": {}, "command": "train"})
    rows = [{"epoch": epoch, "train_loss": 0.5, "mean_fg_dice": 0.1, "dice_per_class": [0.1, None]} for epoch in (0, 1)]
    (fold / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    network = build_network(ArchitectureSpec(reference=NETWORK, kwargs=ARCH_KWARGS), 1, 2, deep_supervision=True)
    state = checkpoints.CheckpointState(
        trainer="Trainer",
        configuration="3d_fullres",
        fold=0,
        network={"reference": NETWORK, "kwargs": ARCH_KWARGS},
        epoch=2,
        step=4,
        elapsed_s=1.0,
        mirror_axes=(0, 1, 2),
        logging=rows,
        best_ema=0.1,
        config={},
        config_set=[],
        plans_hash="0",
    )
    momentum = {"state.0.momentum": torch.zeros(4, 1, 3, 3, 3)}
    checkpoints.save(fold, "final", state, network.state_dict(), optimizer=momentum)
    return fold
