"""A tiny segmentation task in memory: a bright and a dark box in noise, a plan for 16^3 patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from torch import Tensor

from segwright.data.crossval.splits import Split
from segwright.data.labels import Labels
from segwright.data.plan import Plan, architecture_block
from segwright.data.preprocessed.provenance import Provenance
from segwright.training.config import TrainConfig
from segwright.training.loading.batches import Batch
from segwright.training.trainer import Trainer

SHAPE = (18, 16, 20)
DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "bright": 1, "dark": 2},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}
REGIONS_JSON: dict[str, Any] = {
    **DATASET_JSON,
    "labels": {"background": 0, "whole": [1, 2], "dark": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}


@dataclass
class TinyCase:
    image: Any
    label: Any
    class_locations: dict[Any, Any]
    provenance: Provenance


@dataclass
class TinyStore:
    """Four cases in memory, by identifier."""

    dataset_json: dict[str, Any] = field(default_factory=lambda: DATASET_JSON)

    def load(self, identifier: str) -> TinyCase:
        number = int(identifier[-1])
        rng = np.random.default_rng(number)
        label = np.zeros((1, *SHAPE), dtype=np.int16)
        label[0, 2 + number : 8 + number, 3:9, 3:9] = 1
        label[0, 10:15, 9:14, 10:16] = 2
        image = (rng.normal(size=(1, *SHAPE)) + 4 * (label == 1) - 4 * (label == 2)).astype(np.float32)
        labels = Labels.from_dataset_json(self.dataset_json)
        if labels.ignore_label is not None:
            label[0, :, :2] = labels.ignore_label
        locations = {key: np.argwhere(np.isin(label[0], key)) for key in (*labels.class_keys,)}
        return TinyCase(image, label, locations, provenance())


def provenance() -> Provenance:
    return Provenance(
        properties={
            "reader": "SimpleITKIO",
            "spacing": [1.0, 1.0, 1.0],
            "geometry": {
                "spacing": [1.0, 1.0, 1.0],
                "origin": [0.0, 0.0, 0.0],
                "direction": np.eye(3).ravel().tolist(),
            },
        },
        shape_before_cropping=SHAPE,
        box=tuple((0, size) for size in SHAPE),
        shape_after_cropping=SHAPE,
        spacing=(1.0, 1.0, 1.0),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
    )


def configuration(dims: int = 3) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 3,
        "patch_size": [16, 16, 16][:dims],
        "median_image_size_in_voxels": list(map(float, SHAPE[-dims:])),
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": architecture_block(
            "PlainConvUNet",
            dims=dims,
            features=(4, 8, 8),
            kernel_sizes=((3,) * dims,) * 3,
            strides=((1,) * dims, (2,) * dims, (2,) * dims),
            encoder_blocks=(1, 1, 1),
            decoder_convs=(1, 1),
        ),
        "batch_dice": dims == 2,
    }


def plans() -> dict[str, Any]:
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d": configuration(), "2d": configuration(2)},
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def settings(**values: Any) -> TrainConfig:
    few = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "precision": "fp32"}
    return TrainConfig.from_mapping({**few, **values})


def write_references(folder: Path, dataset_json: dict[str, Any]) -> Path:
    """Write the label map of every case as the raw dataset has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        label = TinyStore(dataset_json).load(f"case_{number}").label[0]
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label.astype(np.uint8)), str(folder / f"case_{number}.nii.gz"))
    return folder


class TimedTrainer(Trainer):
    """A trainer with a simulated clock: a training step takes a second, everything else no time."""

    seconds = 0.0

    def _now(self) -> float:
        return self.seconds

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        self.seconds += 1.0
        return super().train_step(batch)


def make(folder: Path, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    """Return a trainer of the tiny task that writes into `folder`."""
    given: dict[str, Any] = {
        "plans": Plan.from_json(plans()),
        "configuration": "3d",
        "fold": 0,
        "dataset_json": DATASET_JSON,
        "device": "cpu",
        "config": settings(),
        "cases": TinyStore(options.get("dataset_json", DATASET_JSON)),
        "split": Split(train=("case_0", "case_1", "case_2"), val=("case_3",)),
        "output_folder": folder / "fold_0",
        **options,
    }
    return kind(**given)
