"""The cases of Hippocampus on which nnU-Net's commands and ours run, in nnU-Net's layouts of today and before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TRAINING = ("hippocampus_001", "hippocampus_003", "hippocampus_004", "hippocampus_006", "hippocampus_011")
TEST = ("hippocampus_014", "hippocampus_015")
DATASET = "Dataset004_Hippocampus"
OTHER = "Dataset005_Others"
TASK = "Task04_Hippocampus"
TRAINER = "nnUNetTrainer"
PLANS = "tinyPlans"
CONFIGURATIONS = ("2d", "3d_fullres")
ENDING = ".nii.gz"


def write_dataset(source: Path, raw: Path) -> None:
    """Write the training and test cases, and dataset.json.

    Args:
        source: the whole dataset.
        raw: the new one.
    """
    for name in TRAINING:
        _copy(source / "imagesTr" / f"{name}_0000{ENDING}", raw / "imagesTr")
        _copy(source / "labelsTr" / f"{name}{ENDING}", raw / "labelsTr")
    for name in TEST:
        _copy(source / "imagesTr" / f"{name}_0000{ENDING}", raw / "imagesTs")
    document = json.loads((source / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**document, "numTraining": len(TRAINING)}))


def write_task(source: Path, task: Path) -> None:
    """Write the cases as a task of the Medical Segmentation Decathlon, which nnU-Net v1 reads too."""
    for name in TRAINING:
        _copy(source / "imagesTr" / f"{name}_0000{ENDING}", task / "imagesTr", f"{name}{ENDING}")
        _copy(source / "labelsTr" / f"{name}{ENDING}", task / "labelsTr")
    for name in TEST:
        _copy(source / "imagesTr" / f"{name}_0000{ENDING}", task / "imagesTs", f"{name}{ENDING}")
    pairs = [{"image": f"./imagesTr/{name}{ENDING}", "label": f"./labelsTr/{name}{ENDING}"} for name in TRAINING]
    document = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": len(TRAINING),
        "numTest": len(TEST),
        "tensorImageSize": "3D",
        "training": pairs,
        "test": [f"./imagesTs/{name}{ENDING}" for name in TEST],
    }
    (task / "dataset.json").write_text(json.dumps(document))


def write_old_dataset(source: Path, task: Path) -> None:
    """Write the cases as a dataset of nnU-Net v1."""
    write_task(source, task)
    for folder, cases in (("imagesTr", TRAINING), ("imagesTs", TEST)):
        for name in cases:
            (task / folder / f"{name}{ENDING}").rename(task / folder / f"{name}_0000{ENDING}")


def shrink(plans: Path, new: Path) -> None:
    """Write plans of another name with networks of a few thousand weights."""
    document = json.loads(plans.read_text())
    document["plans_name"] = new.stem
    for configuration in document["configurations"].values():
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [8] * kwargs["n_stages"]
        configuration["batch_size"] = 2 if configuration["patch_size"][2:] else 8
    new.write_text(json.dumps(document))


def _copy(file: Path, folder: Path, name: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / (name or file.name))
