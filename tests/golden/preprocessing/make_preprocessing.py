"""Make the preprocessing goldens: run nnU-Net 2.8.1's commands on small synthetic datasets and keep what they write.

Run with the Python of the oracle's environment: python tests/golden/preprocessing/make_preprocessing.py [NAME ...]
Each `NAME.npz` holds a dataset (images, labels, spacings), its plans and, per configuration and case, the
preprocessed image and label map, the crop box and the class locations, as JSON text and plain arrays.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import SimpleITK
from scipy import ndimage

HERE = Path(__file__).parent
LARGEST_FILE = 300_000

# shape and spacing (z, y, x) of each case; what the dataset is like; which planner and configurations
DATASETS: dict[str, dict[str, Any]] = {
    "isotropic_ct": {
        "channels": ["CT"],
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "cases": [((22, 24, 26), (1.0, 1.0, 1.0)), ((18, 20, 24), (1.3, 1.25, 1.2)), ((30, 22, 20), (0.8, 1.1, 1.0))],
        "configurations": ["3d_fullres"],
    },
    "anisotropic": {
        "channels": ["MR"],
        "labels": {"background": 0, "inner": 1, "outer": 2},
        "cases": [((8, 32, 36), (6.0, 0.9, 1.0)), ((7, 30, 30), (7.0, 1.0, 1.1)), ((9, 36, 32), (5.5, 0.8, 0.9))],
        "configurations": ["3d_fullres", "2d"],
    },
    "permuted": {
        "channels": ["MR"],
        "labels": {"background": 0, "inner": 1, "outer": 2},
        "cases": [((32, 36, 8), (0.9, 1.0, 6.0)), ((30, 30, 7), (1.0, 1.1, 7.0)), ((36, 32, 9), (0.8, 0.9, 5.5))],
        "configurations": ["3d_fullres", "2d"],
    },
    "masked_channels": {
        "channels": ["T1", "FLAIR"],
        "labels": {"background": 0, "edema": 1, "core": 2},
        "border": 4,
        "cases": [((24, 26, 22), (1.0, 1.0, 1.0)), ((22, 24, 24), (1.2, 1.1, 1.0)), ((20, 24, 22), (1.3, 1.0, 1.1))],
        "configurations": ["3d_fullres", "2d"],
    },
    "regions_ignore": {
        "channels": ["MR"],
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
        "cases": [((20, 24, 22), (1.0, 1.0, 1.0)), ((22, 20, 20), (1.1, 1.2, 1.0)), ((18, 22, 24), (1.0, 0.9, 1.2))],
        "configurations": ["3d_fullres"],
    },
    "torch_resampling": {
        "channels": ["MR"],
        "labels": {"background": 0, "inner": 1, "outer": 2},
        "cases": [((20, 24, 22), (1.0, 1.0, 1.0)), ((22, 20, 20), (1.1, 1.2, 1.0)), ((18, 22, 24), (1.0, 0.9, 1.2))],
        "planner": "nnUNetPlanner_torchres",
        "configurations": ["3d_fullres"],
    },
    "rgb_2d": {
        "channels": ["R", "G", "B"],
        "labels": {"background": 0, "inner": 1, "outer": 2},
        "ending": ".png",
        "cases": [((1, 60, 52), (999.0, 1.0, 1.0)), ((1, 48, 70), (999.0, 1.0, 1.0))],
        "configurations": ["2d"],
    },
    "other_schemes": {
        "channels": ["nonorm", "rescale_to_0_1", "rgb_to_0_1"],
        "labels": {"background": 0, "inner": 1},
        "cases": [((16, 18, 20), (1.0, 1.0, 1.0)), ((18, 16, 16), (1.2, 1.1, 1.0))],
        "configurations": ["3d_fullres"],
    },
}


def make_case(
    rng: np.random.Generator, dataset: dict[str, Any], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 images (C, *S) and a uint8 label map (*S) of smooth blobs."""
    values = sorted({int(v) for key in dataset["labels"].values() for v in (key if isinstance(key, list) else [key])})
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2.2) for _ in values])
    label = np.asarray(values)[fields.argmax(axis=0)].astype(np.uint8)
    images = []
    for _ in dataset["channels"]:
        noise = ndimage.gaussian_filter(rng.normal(size=shape), 0.7)
        image = 120 + 30 * label + 40 * noise / noise.std()
        images.append(np.clip(np.round(image), 1, 255).astype(np.int16))
    array = np.stack(images)
    border = dataset.get("border", 0)
    if border:
        distance = np.stack(
            np.meshgrid(*[np.abs(np.arange(n) - (n - 1) / 2) / (n / 2 - border) for n in shape], indexing="ij")
        )
        outside = np.sqrt((distance**2).sum(axis=0)) > 1
        array[:, outside] = 0
        label[outside] = 0
        # A label outside the non-zero region, and a hole inside it: both have rules of their own.
        middle = tuple(n // 2 for n in shape)
        array[:, middle[0], middle[1], middle[2]] = 0
        label[border + 1, middle[1] - 4 : middle[1] + 4, border] = 1
    return array, label


def write_case(
    raw: Path, stem: str, images: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], *, ending: str
) -> None:
    """Write the files of one case, a natural image as one file with all channels."""
    if ending == ".png":
        picture = SimpleITK.GetImageFromArray(np.moveaxis(images[:, 0], 0, -1).astype(np.uint8), isVector=True)
        SimpleITK.WriteImage(picture, str(raw / f"imagesTr/{stem}_0000{ending}"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label[0]), str(raw / f"labelsTr/{stem}{ending}"))
        return
    files = [(f"imagesTr/{stem}_{channel:04d}", image) for channel, image in enumerate(images)]
    for name, array in [*files, (f"labelsTr/{stem}", label)]:
        picture = SimpleITK.GetImageFromArray(array)
        picture.SetSpacing(tuple(float(value) for value in spacing[::-1]))
        SimpleITK.WriteImage(picture, str(raw / f"{name}{ending}"))


def run_oracle(name: str, dataset: dict[str, Any], work: Path) -> dict[str, np.ndarray]:
    """Write the dataset, run the commands, return the content of the golden file."""
    rng = np.random.default_rng(sum(map(ord, name)))
    raw = work / "raw" / "Dataset001_Golden"
    for folder in (raw / "imagesTr", raw / "labelsTr", work / "preprocessed", work / "results"):
        folder.mkdir(parents=True)
    content: dict[str, np.ndarray] = {}
    for index, (shape, spacing) in enumerate(dataset["cases"]):
        images, label = make_case(rng, dataset, shape)
        content[f"image_{index}"], content[f"label_{index}"] = images, label
        content[f"spacing_{index}"] = np.asarray(spacing)
        write_case(raw, f"case{index}", images, label, spacing, ending=dataset.get("ending", ".nrrd"))
    description = {
        "channel_names": {str(index): channel for index, channel in enumerate(dataset["channels"])},
        "labels": dataset["labels"],
        "numTraining": len(dataset["cases"]),
        "file_ending": dataset.get("ending", ".nrrd"),
    }
    if "regions_class_order" in dataset:
        description["regions_class_order"] = dataset["regions_class_order"]
    (raw / "dataset.json").write_text(json.dumps(description))
    environment = {
        **os.environ,
        "nnUNet_raw": str(work / "raw"),
        "nnUNet_preprocessed": str(work / "preprocessed"),
        "nnUNet_results": str(work / "results"),
    }
    configurations = dataset["configurations"]
    command = [str(Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-npfp", "1", "-np", "1"]
    command += ["-pl", dataset.get("planner", "ExperimentPlanner"), "-c", *configurations]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    folder = work / "preprocessed" / "Dataset001_Golden"
    (plans_file,) = folder.glob("nnUNetPlans*.json")
    plans = json.loads(plans_file.read_text())
    content["dataset_json"] = np.asarray(json.dumps(description))
    content["plans"] = np.asarray(json.dumps(plans))
    for configuration in configurations:
        data = folder / plans["configurations"][configuration]["data_identifier"]
        for index in range(len(dataset["cases"])):
            content.update(read_case(data / f"case{index}", f"{configuration}_{index}"))
    return content


def read_case(stem: Path, key: str) -> dict[str, np.ndarray]:
    """Return one preprocessed case; class locations are kept for the first rows of each class only."""
    with stem.with_suffix(".pkl").open("rb") as stream:
        properties = pickle.load(stream)
    result = {
        f"{key}_image": blosc2.open(str(stem) + ".b2nd", mode="r")[:],
        f"{key}_seg": blosc2.open(str(stem) + "_seg.b2nd", mode="r")[:],
        f"{key}_box": np.asarray(properties["bbox_used_for_cropping"]),
        f"{key}_shape_before": np.asarray(properties["shape_before_cropping"]),
        f"{key}_shape_after": np.asarray(properties["shape_after_cropping_and_before_resampling"]),
    }
    for position, (label, voxels) in enumerate(properties["class_locations"].items()):
        result[f"{key}_class_{position}"] = np.asarray(label if isinstance(label, tuple) else [label])
        voxels = np.asarray(voxels).reshape(-1, 4)
        result[f"{key}_count_{position}"] = np.asarray(len(voxels))
        result[f"{key}_voxels_{position}"] = voxels[:50, 1:].astype(np.int16)
    return result


def main() -> None:
    """Make all goldens, or the ones named."""
    for name in sys.argv[1:] or DATASETS:
        with tempfile.TemporaryDirectory() as work:
            content = run_oracle(name, DATASETS[name], Path(work))
        path = HERE / f"{name}.npz"
        np.savez_compressed(path, **content)
        assert path.stat().st_size < LARGEST_FILE, f"{path} has {path.stat().st_size} bytes"
        sys.stdout.write(f"{path.name} {path.stat().st_size}\n")


if __name__ == "__main__":
    main()
