"""Write plans.json.gz: what nnU-Net 2.8.1's planners make of invented datasets.

Run with the interpreter of an environment that has nnunetv2==2.8.1 (the oracle), from anywhere:

    ORACLE/bin/python tests/golden/plans/make_plans.py
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its customary name)
import torch
from PIL import Image

TARGET = Path(__file__).with_name("plans.json.gz")

PLANNERS = {
    ("default", "default"): "ExperimentPlanner",
    ("resenc", "default"): "ResEncUNetPlanner",
    ("resenc-m", "default"): "nnUNetPlannerResEncM",
    ("resenc-l", "default"): "nnUNetPlannerResEncL",
    ("resenc-xl", "default"): "nnUNetPlannerResEncXL",
    ("default", "torch"): "nnUNetPlanner_torchres",
    ("resenc-l", "torch"): "nnUNetPlannerResEncL_torchres",
    ("resenc-l", "torch-sepz"): "nnUNetPlannerResEncL_torchres_sepz",
    ("resenc-l", "none"): "nnUNetPlannerResEncL_noResampling",
}
RUNS = [
    *({"preset": preset, "resampling": resampling} for preset, resampling in PLANNERS),
    {"preset": "default", "resampling": "default", "gpu_memory": 20.0},
    {"preset": "resenc-l", "resampling": "default", "gpu_memory": 20.0},
]
EXTRA_RUNS = {
    "thick_slices": [{"preset": "default", "resampling": "default", "spacing": [2.0, 1.0, 0.8]}],
    "big_ct": [{"preset": "default", "resampling": "default", "plans_name": "MyPlans"}],
    "hippocampus": [{"preset": "default", "resampling": "default", "spacing": [1.0, 3.5, 0.9], "plans_name": "Coarse"}],
}


def dataset(
    channels: list[str], labels: dict[str, Any], cases: int, ending: str = ".nii.gz", **more: Any
) -> dict[str, Any]:
    """Return a dataset.json."""
    names = {str(index): name for index, name in enumerate(channels)}
    return {"channel_names": names, "labels": labels, "numTraining": cases, "file_ending": ending, **more}


def numbered(count: int) -> dict[str, int]:
    """Return labels with `count` structures."""
    return {"background": 0, **{f"structure_{value}": value for value in range(1, count + 1)}}


def invented(
    seed: int,
    spacing: list[float],
    shape: list[int],
    *,
    channels: int = 1,
    cases: int = 9,
    spread: tuple[float, float, float] = (0.1, 0.1, 0.1),
    kept: float = 1.0,
) -> dict[str, Any]:
    """Return a fingerprint of cases that vary around a spacing and a shape, by the relative `spread` per axis."""
    generator = np.random.default_rng(seed)
    varied = np.exp(generator.normal(size=(cases, 3)) * spread)
    sizes = np.maximum(np.round(np.asarray(shape) * np.exp(generator.normal(size=(cases, 3)) * spread)), 1)
    sizes[:, np.asarray(shape) == 1] = 1
    keys = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    return {
        "foreground_intensity_properties_per_channel": {
            str(channel): dict(zip(keys, np.round(generator.normal(size=7) * 100, 6).tolist(), strict=True))
            for channel in range(channels)
        },
        "median_relative_size_after_cropping": kept,
        "shapes_after_crop": sizes.astype(int).tolist(),
        "spacings": np.round(varied * spacing, 7).tolist(),
    }


def inputs() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return dataset.json and fingerprint by name."""
    one = {"background": 0, "structure": 1}
    flat = (0.0, 0.2, 0.2)
    tumor = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    mixed = ["CT", "noNorm", "rescale_to_0_1", "zscore", "T2"]
    rgb = ["R", "G", "B"]
    return {
        "big_ct": (
            dataset(["CT"], numbered(2), 131),
            invented(1, [1.0, 0.77, 0.77], [432, 512, 512], spread=(0.3, 0.1, 0.0), cases=15),
        ),
        "anisotropic_ct": (
            dataset(["CT"], numbered(13), 60),
            invented(2, [3.0, 0.8, 0.8], [150, 512, 512], spread=(0.2, 0.1, 0.05)),
        ),
        "thick_slices": (
            dataset(["T2", "ADC"], numbered(2), 32),
            invented(3, [5.0, 0.6, 0.6], [20, 320, 319], channels=2, spread=(0.3, 0.1, 0.05), cases=10),
        ),
        "thick_but_some_thin": (
            dataset(["cine-MRI"], numbered(3), 200),
            invented(4, [6.0, 1.3, 1.4], [12, 240, 200], spread=(1.3, 0.1, 0.1), cases=20),
        ),
        "coarse_last_axis": (
            dataset(["CT"], one, 40),
            invented(5, [0.7, 0.7, 4.0], [400, 380, 60], spread=(0.1, 0.1, 0.2)),
        ),
        "coarse_middle_axis": (
            dataset(["T1"], numbered(5), 25),
            invented(6, [0.9, 2.5, 0.8], [180, 90, 210], spread=(0.1, 0.2, 0.1)),
        ),
        "four_channels_masked": (
            dataset(["FLAIR", "T1w", "T1gd", "T2w"], tumor, 484, regions_class_order=[1, 2, 3]),
            invented(7, [1.0, 1.0, 1.0], [140, 171, 137], channels=4, spread=(0.0, 0.0, 0.0), kept=0.42),
        ),
        "mixed_channels": (
            dataset(mixed, numbered(4), 77),
            invented(8, [2.2, 1.1, 1.1], [90, 190, 170], channels=5, kept=0.7499),
        ),
        "rgb_slides": (
            dataset(rgb, one, 804, ".png"),
            invented(9, [999, 1, 1], [1, 1500, 1500], channels=3, spread=(0.0, 0.0, 0.0)),
        ),
        "rgb_varied": (
            dataset(["rgb_to_0_1"] * 3, numbered(6), 40, ".png"),
            invented(10, [999, 1, 1], [1, 700, 500], channels=3, spread=flat),
        ),
        "small_grey": (
            dataset(["xray"], one, 100, ".png"),
            invented(11, [999, 1, 1], [1, 224, 180], spread=flat, cases=8),
        ),
        "microscopy": (
            dataset(["EM"], numbered(1), 3, ".nii.gz"),
            invented(12, [0.00004, 0.000016, 0.000016], [165, 768, 1024], spread=(0.1, 0.1, 0.1), cases=3),
        ),
        "many_classes": (
            dataset(["CT"], numbered(104), 1139),
            invented(13, [1.5, 1.5, 1.5], [250, 260, 240], spread=(0.3, 0.2, 0.2), cases=30),
        ),
        "hippocampus": (
            dataset(["MRI"], numbered(2), 260),
            invented(14, [1.0, 1.0, 1.0], [36, 50, 35], spread=(0.05, 0.05, 0.05), cases=20),
        ),
        "tiny_set": (
            dataset(["NoNorm"], numbered(3), 2, ".nrrd"),
            invented(15, [0.3, 0.3, 0.3], [64, 30, 300], spread=(0.0, 0.0, 0.0), cases=2),
        ),
    }


def write_example(folder: Path, ending: str, channels: int) -> None:
    """Write the images of one case: nnU-Net chooses its reader by opening the first."""
    folder.mkdir(parents=True)
    if ending == ".png":
        shape = (8, 8, 3) if channels == 3 else (8, 8)
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(folder / "case_0000.png")
        return
    for channel in range(channels):
        image = sitk.GetImageFromArray(np.zeros((4, 4, 4), dtype=np.float32))
        sitk.WriteImage(image, str(folder / f"case_{channel:04d}{ending}"))


def oracle_plan(root: Path, identifier: int, name: str, run: dict[str, Any]) -> dict[str, Any]:
    """Return the plan that nnU-Net writes."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    with torch.device("meta"):  # its memory estimate builds networks, whose weights nobody needs
        plans_name = plan_experiments(
            [identifier],
            experiment_planner_class_name=PLANNERS[run["preset"], run["resampling"]],
            gpu_memory_target_in_gb=run.get("gpu_memory"),
            overwrite_target_spacing=run.get("spacing"),
            overwrite_plans_name=run.get("plans_name"),
        )
    path = root / "preprocessed" / f"Dataset{identifier:03d}_{name}" / f"{plans_name}.json"
    plan: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return plan


def main() -> None:
    """Run every planner on every dataset."""
    root = Path(tempfile.mkdtemp())
    for tree in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{tree}"] = str(root / tree)
    golden: dict[str, Any] = {"oracle": "nnunetv2 2.8.1", "datasets": {}, "plans": []}
    for identifier, (name, (description, fingerprint)) in enumerate(inputs().items(), start=1):
        folder = f"Dataset{identifier:03d}_{name}"
        write_example(root / "raw" / folder / "imagesTr", description["file_ending"], len(description["channel_names"]))
        (root / "raw" / folder / "dataset.json").write_text(json.dumps(description))
        (root / "preprocessed" / folder).mkdir(parents=True)
        (root / "preprocessed" / folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        golden["datasets"][folder] = {"dataset_json": description, "fingerprint": fingerprint}
        for run in [*RUNS, *EXTRA_RUNS.get(name, [])]:
            plan = oracle_plan(root, identifier, name, run)
            golden["plans"].append({"dataset": folder, "run": run, "plan": plan})
    shutil.rmtree(root)
    text = json.dumps(golden, separators=(",", ":")).encode()
    TARGET.write_bytes(gzip.compress(text, compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
