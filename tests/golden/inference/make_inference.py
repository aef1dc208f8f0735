"""Make the goldens of inference with nnU-Net 2.8.1: `~/.cache/segwright-oracle/bin/python make_inference.py`.

Each case is a small network with random weights, an image and what nnU-Net predicts from array to array: normalised,
resampled, tiled, mirrored, stitched, resampled back and decided.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.ndimage import gaussian_filter

HERE = Path(__file__).parent
LABELS = {"background": 0, "one": 1, "two": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}

CASES = {
    # name: (patch, spacing of plan, spacing of image, shape of image, transpose_forward, labels, channel names)
    "isotropic_3d": ([16, 16, 16], [1.5, 1.5, 1.5], [1.0, 1.2, 1.1], (22, 30, 37), [0, 1, 2], LABELS, ["MRI"]),
    "anisotropic_3d": ([8, 16, 16], [4.0, 1.0, 1.0], [0.9, 5.0, 0.8], (34, 11, 40), [1, 0, 2], LABELS, ["CT", "T1"]),
    "slices_2d": ([16, 16], [1.2, 1.2], [3.0, 1.0, 1.0], (6, 30, 20), [0, 1, 2], LABELS, ["MRI"]),
    "regions_3d": ([16, 16, 16], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], (12, 20, 25), [2, 0, 1], REGIONS, ["MRI"]),
}


def plans(patch: list[int], spacing: list[float], order: list[int], channels: list[str]) -> dict[str, object]:
    dims = len(patch)
    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_golden",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(size) for size in patch],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization" if name == "CT" else "ZScoreNormalization" for name in channels],
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**kwargs, "order": 3},
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": kwargs,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [6, 8],
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
    intensities = {"max": 300.0, "mean": 80.0, "median": 75.0, "min": -100.0, "std": 60.0}
    return {
        "dataset_name": "Dataset001_Golden",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [20] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": order,
        "transpose_backward": [order.index(axis) for axis in range(3)],
        "configurations": {"golden": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): {**intensities, "percentile_00_5": -60.0, "percentile_99_5": 250.0}
            for index in range(len(channels))
        },
    }


def make(name: str) -> None:
    patch, spacing, image_spacing, shape, order, labels, channels = CASES[name]
    generator = np.random.default_rng(sum(map(ord, name)))
    torch.manual_seed(1)
    document = plans(patch, spacing, order, channels)
    dataset = {
        "channel_names": dict(enumerate(channels)),
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **({"regions_class_order": [1, 2]} if labels is REGIONS else {}),
    }
    image = np.stack([gaussian_filter(generator.normal(size=shape), 2) * 900 + 80 for _ in channels]).astype(np.float32)
    image[..., :3] = 0
    heads = 2 if labels is REGIONS else 3
    architecture = document["configurations"]["golden"]["architecture"]["arch_kwargs"]
    kwargs = {key: value for key, value in architecture.items() if not key.endswith("_op") and key != "nonlin"}
    network = PlainConvUNet(
        len(channels),
        num_classes=heads,
        conv_op=torch.nn.Conv2d if len(patch) == 2 else torch.nn.Conv3d,
        norm_op=torch.nn.InstanceNorm2d if len(patch) == 2 else torch.nn.InstanceNorm3d,
        dropout_op=None,
        nonlin=torch.nn.LeakyReLU,
        deep_supervision=True,
        **kwargs,
    )
    for layer in network.decoder.seg_layers:
        torch.nn.init.normal_(layer.weight)  # logits of a trained network's size
    with tempfile.TemporaryDirectory() as temporary:
        fold = Path(temporary) / "fold_0"
        fold.mkdir()
        (fold.parent / "plans.json").write_text(json.dumps(document))
        (fold.parent / "dataset.json").write_text(json.dumps(dataset))
        checkpoint = {
            "network_weights": network.state_dict(),
            "init_args": {"configuration": "golden"},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": tuple(range(len(patch))),
        }
        torch.save(checkpoint, fold / "checkpoint_final.pth")
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(temporary, (0,), "checkpoint_final.pth")
        segmentation, probabilities = predictor.predict_single_npy_array(
            image, {"spacing": image_spacing}, None, None, True
        )
    weights = {
        f"weights/{key}": value.numpy()
        for key, value in network.state_dict().items()
        if ".all_modules." not in key and not key.startswith("decoder.encoder.")
    }
    texts = {"plans": json.dumps(document), "dataset": json.dumps(dataset)}
    np.savez_compressed(
        HERE / f"{name}.npz",
        image=image,
        spacing=np.array(image_spacing),
        segmentation=segmentation.astype(np.uint8),
        probabilities=probabilities.astype(np.float16),
        **weights,
        **{key: np.array(text) for key, text in texts.items()},
    )


if __name__ == "__main__":
    for case in CASES:
        make(case)
