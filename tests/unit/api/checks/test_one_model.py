"""What the folds of one model share is asked for before another fold is trained into its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segwright.api.checks.one_model import (
    differing_settings,
    recorded_settings,
    require_no_checkpoint,
    require_same_network,
    require_same_plan,
    require_same_settings,
    require_same_task,
)
from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.locks import locked
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan
from segwright.training.config import TrainConfig

DATASET: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "shell": 1, "core": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
BLOCK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {"n_stages": 2},
    "_kw_requires_import": [],
}


def plan(normalization: str = "ZScoreNormalization", mean: float = 1.0, **changes: Any) -> Plan:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    functions = ("data", "seg", "probabilities")
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [16.0, 16.0, 16.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": [normalization],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{name}": "resample_data_or_seg_to_shape" for name in functions},
        **{f"resampling_fn_{name}_kwargs": resampling for name in functions},
        "architecture": BLOCK,
        "batch_dice": False,
        **changes,
    }
    return Plan.from_json(
        {
            "dataset_name": "Dataset001_Tiny",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"3d": configuration},
            "foreground_intensity_properties_per_channel": {"0": {"mean": mean}},
        }
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder in which fold 0 is trained."""
    folder = tmp_path / "Trainer__nnUNetPlans__3d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.safetensors").touch()
    (folder / "fold_0" / "checkpoint_final.json").touch()
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    plan().save(folder / "plans.json")
    record(folder / "fold_0")
    return folder


def record(fold: Path, **settings: Any) -> None:
    config = TrainConfig(**{"num_epochs": 3, **settings}).model_dump(mode="json")
    (fold / "train.json").write_text(json.dumps({"config": config}))


def description(**changes: Any) -> DatasetDescription:
    return DatasetDescription.model_validate({**DATASET, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": 0, "core": 1, "shell": 2}},
        {"labels": {"background": 0, "shell": 1, "kernel": 2}},
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]},
        {"channel_names": {"0": "CT"}},
    ],
)
def test_a_second_set_of_labels_or_channels_is_refused_with_both_and_a_way_out(
    model: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"fold 0 was trained with another dataset\.json \(.*, now .*--name NAME"):
        require_same_task(model, description(**changes))


def test_a_grown_dataset_is_the_same_task(model: Path) -> None:
    require_same_task(model, description(numTraining=10))


def test_a_folder_without_trained_folds_takes_any_task_and_plan(model: Path) -> None:
    (model / "fold_0" / "checkpoint_final.safetensors").unlink()
    require_same_task(model, description(channel_names={"0": "CT"}))
    require_same_plan(model, plan(batch_size=9), "3d")


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"spacing": [1.0, 1.0, 2.0]}])
def test_another_plan_is_refused(model: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="fold 0 was trained with a plan that has changed since; delete the folder"):
        require_same_plan(model, plan(**changes), "3d")


def test_what_no_training_reads_may_change(model: Path) -> None:
    require_same_plan(model, plan(median_image_size_in_voxels=[17.0, 16.0, 16.0], mean=5.0), "3d")


def test_statistics_that_images_are_normalised_with_may_not_change(model: Path) -> None:
    plan("CTNormalization").save(model / "plans.json")
    require_same_plan(model, plan("CTNormalization"), "3d")
    with pytest.raises(ModelError, match="a plan that has changed since"):
        require_same_plan(model, plan("CTNormalization", mean=5.0), "3d")


@pytest.mark.parametrize(
    "settings",
    [{"network": "residual-unet"}, {"network": "unet", "network_kwargs": {"width": 8}}, {"norm": "batch"}],
)
def test_a_fold_with_another_network_is_refused(model: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"fold_0: was trained with .* = that of the plan, not .* share one network"):
        require_same_network(model, [1], settings)


def test_forgetting_the_network_of_the_other_folds_is_refused(model: Path) -> None:
    record(model / "fold_0", network="residual-unet")
    with pytest.raises(ModelError, match="with network = residual-unet, not that of the plan"):
        require_same_network(model, [1], {})
    require_same_network(model, [1], {"network": "residual-unet", "num_epochs": 7})
    require_same_network(model, [0], {})  # goes on with its own


def test_a_fold_that_does_not_say_its_network_is_believed(model: Path) -> None:
    (model / "fold_0" / "train.json").unlink()
    require_same_network(model, [1], {"network": "residual-unet"})


def test_what_a_finished_fold_cannot_become_is_refused(model: Path) -> None:
    with pytest.raises(
        ConfigError, match="is finished and was trained with initial_lr = 0.01, not 0.1; delete the folder"
    ):
        require_same_settings(model / "fold_0", {"initial_lr": 0.1})


def test_length_and_what_was_asked_for_before_are_no_other_training(model: Path) -> None:
    require_same_settings(model / "fold_0", {"num_epochs": 5, "initial_lr": 0.01})
    assert differing_settings(model / "fold_0", {"num_epochs": 5, "initial_lr": 0.01}) == {"num_epochs": (3, 5)}


def test_a_record_with_an_earlier_name_of_a_setting_is_compared(model: Path) -> None:
    (model / "fold_0" / "train.json").write_text(json.dumps({"config": {"sinks": ["mlflow"]}}))
    assert recorded_settings(model / "fold_0")["loggers"] == ["mlflow"]
    assert differing_settings(model / "fold_0", {"loggers": "wandb"}) == {"loggers": (["mlflow"], ["wandb"])}
    require_same_settings(model / "fold_0", {"loggers": "wandb"})


def test_an_existing_training_is_refused_unless_a_process_runs_it(model: Path) -> None:
    with pytest.raises(ModelError, match="already contains a training; continue it with --resume, .*with --name NAME"):
        require_no_checkpoint(model / "fold_0")
    with locked(model / ".fold_0.lock", "training"):
        require_no_checkpoint(model / "fold_0")
