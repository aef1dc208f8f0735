"""Make the goldens of post-processing and selection with nnU-Net 2.8.1, which is run as programs:

    ~/.cache/segwright-oracle/bin/python make_selection.py

`postprocessing_NAME.npz`: references, predictions, and what `nnUNetv2_determine_postprocessing` decides and makes of
them. `selection_NAME.npz`: probabilities of two models on the cases of folds 0 and 2, and what
`nnUNetv2_find_best_configuration` finds.
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

import numpy as np
import SimpleITK as sitk  # noqa: N813

HERE = Path(__file__).parent
PROGRAMS = Path(sys.executable).parent
SHAPE = (6, 14, 12)
LABELS = {"background": 0, "one": 1, "two": 2}
REGIONS = {"background": 0, "whole": [1, 2, 3], "middle": [2, 3], "core": 3}
STEPS = 1024
"""Probabilities are multiples of 1 / STEPS, so that they are stored exactly."""
DATASET = "Dataset001_Golden"
FOLDS = {0: ("case_0", "case_3", "case_4"), 2: ("case_1", "case_2", "case_5")}
CONFIGURATIONS = ("2d", "3d_fullres")


def box(array: np.ndarray, start: tuple[int, int, int], size: int, value: int) -> None:
    array[tuple(slice(low, low + size) for low in start)] = value


def touching(stray: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two structures side by side; the prediction has stray voxels of some labels far away."""
    references, predictions = [], []
    for index in range(3):
        reference = np.zeros(SHAPE, np.uint8)
        box(reference, (1, 1 + index, 1), 4, 1)
        box(reference, (1, 1 + index, 5), 3, 2)
        prediction = reference.copy()
        for value in stray:
            box(prediction, (4, 11, 1 + 4 * value), 2, value)
        references.append(reference)
        predictions.append(prediction)
    return references, predictions


def apart() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Label 1 is truly in two parts; label 2 is in one, the prediction has a stray part of it."""
    references, predictions = [], []
    for index in range(3):
        reference = np.zeros(SHAPE, np.uint8)
        box(reference, (0, 0, index), 4, 1)
        box(reference, (2, 10, 6), 3, 1)
        box(reference, (0, 5, 1), 3, 2)
        prediction = reference.copy()
        box(prediction, (4, 6, 8), 2, 2)
        references.append(reference)
        predictions.append(prediction)
    return references, predictions


def right() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both labels are truly in two parts, and found."""
    reference = np.zeros(SHAPE, np.uint8)
    for value in (1, 2):
        box(reference, (0, 0, 5 * value - 4), 3, value)
        box(reference, (3, 9, 5 * value - 3), 2, value)
    worse = reference.copy()
    worse[:, :2] = 0
    return [reference, reference], [reference, worse]


def tied() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two parts of the same size, which both stay, and a smaller one; a class that is in no case."""
    reference = np.zeros(SHAPE, np.uint8)
    box(reference, (0, 0, 0), 3, 1)
    box(reference, (0, 5, 5), 3, 1)
    prediction = reference.copy()
    box(prediction, (4, 11, 9), 2, 1)
    return [reference], [prediction]


def random(labels: dict[str, Any], seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Blobs with errors of every kind."""
    generator = np.random.default_rng(seed)
    values = range(1, 4 if labels is REGIONS else 3)
    references, predictions = [], []
    for _ in range(4):
        reference = np.zeros(SHAPE, np.uint8)
        for value in values:
            for _ in range(generator.integers(1, 3)):
                box(reference, tuple(generator.integers(0, [4, 10, 8])), int(generator.integers(2, 5)), value)
        prediction = np.where(generator.random(SHAPE) < 0.05, generator.integers(0, max(values) + 1, SHAPE), reference)
        for value in values:
            if generator.random() < 0.6:
                box(prediction, tuple(generator.integers(0, [4, 12, 10])), 2, value)
        references.append(reference)
        predictions.append(prediction.astype(np.uint8))
    return references, predictions


POSTPROCESSING = {
    "all_foreground_helps": (LABELS, touching((1, 2))),
    "one_label_helps": (LABELS, apart()),
    "nothing_helps": (LABELS, right()),
    "class_in_no_case": (LABELS, tied()),
    **{f"random_{seed}": (LABELS, random(LABELS, seed)) for seed in range(4)},
    **{f"regions_{seed}": (REGIONS, random(REGIONS, seed)) for seed in range(4)},
}


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def dataset_json(labels: dict[str, Any]) -> dict[str, Any]:
    document = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    if labels is REGIONS:
        document["regions_class_order"] = [1, 2, 3]
    return document


def plans_json() -> dict[str, Any]:
    blocks = {name: {"spacing": [2, 1, 1], "architecture": {}} for name in CONFIGURATIONS}
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": blocks,
    }


def run(name: str, *arguments: object, **variables: str) -> None:
    command = [str(PROGRAMS / name), *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


def make_postprocessing(name: str, work: Path) -> None:
    labels, (references, predictions) = POSTPROCESSING[name]
    for folder, arrays in (("references", references), ("predictions", predictions)):
        for index, array in enumerate(arrays):
            write(work / folder / f"case_{index}.nii.gz", array)
    found = work / "predictions"
    (found / "plans.json").write_text(json.dumps(plans_json()))
    (found / "dataset.json").write_text(json.dumps(dataset_json(labels)))
    run("nnUNetv2_determine_postprocessing", "-i", found, "-ref", work / "references", "-np", 1)
    results = [read(found / "postprocessed" / f"case_{index}.nii.gz") for index in range(len(references))]
    np.savez_compressed(
        HERE / f"postprocessing_{name}.npz",
        dataset=json.dumps(dataset_json(labels)),
        references=np.stack(references),
        predictions=np.stack(predictions),
        decided=(found / "postprocessing.json").read_text(),
        results=np.stack(results),
    )
    document = json.loads((found / "postprocessing.json").read_text())
    print(name, [each["labels_or_regions"] for each in document["postprocessing_kwargs"]])


def probabilities(reference: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    """Probabilities of the labels of a reference, with errors."""
    scores = np.stack([(reference == value) * 2.0 for value in range(3)]) + generator.normal(0, noise, (3, *SHAPE))
    values = np.exp(scores) / np.exp(scores).sum(axis=0)
    return (np.rint(values * STEPS) / STEPS).astype(np.float32)


def make_selection(name: str, noises: tuple[float, float], seed: int, work: Path) -> None:
    generator = np.random.default_rng(seed)
    references = dict(
        zip(sorted(case for cases in FOLDS.values() for case in cases), random(LABELS, seed)[0] * 2, strict=False)
    )
    for case in references:
        write(work / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", references[case])
        write(work / "preprocessed" / DATASET / "gt_segmentations" / f"{case}.nii.gz", references[case])
        write(work / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", references[case].astype(np.float32))
    for place in (work / "raw" / DATASET, work / "preprocessed" / DATASET):
        (place / "dataset.json").write_text(json.dumps(dataset_json(LABELS)))
        (place / "nnUNetPlans.json").write_text(json.dumps(plans_json()))
    stored: dict[str, np.ndarray] = {}
    for configuration, noise in zip(CONFIGURATIONS, noises, strict=False):
        model = work / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        model.mkdir(parents=True)
        (model / "dataset.json").write_text(json.dumps(dataset_json(LABELS)))
        (model / "plans.json").write_text(json.dumps(plans_json()))
        for fold, cases in FOLDS.items():
            folder = model / f"fold_{fold}" / "validation"
            for case in cases:
                values = probabilities(references[case], noise, generator)
                write(folder / f"{case}.nii.gz", values.argmax(axis=0).astype(np.uint8))
                np.savez_compressed(folder / f"{case}.npz", probabilities=values)
                geometry = {"spacing": (1.0, 1.0, 2.0), "origin": (0.0,) * 3, "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
                with (folder / f"{case}.pkl").open("wb") as stream:
                    pickle.dump({"sitk_stuff": geometry, "spacing": [2.0, 1.0, 1.0]}, stream)
                stored[f"probabilities/{configuration}/{case}"] = np.rint(values * STEPS).astype(np.uint16)
    run(
        *("nnUNetv2_find_best_configuration", 1, "-c", *CONFIGURATIONS, "-f", *FOLDS, "-np", 1),
        nnUNet_raw=str(work / "raw"),
        nnUNet_preprocessed=str(work / "preprocessed"),
        nnUNet_results=str(work / "results"),
    )
    information = json.loads((work / "results" / DATASET / "inference_information.json").read_text())
    best = information["best_model_or_ensemble"]
    decided = Path(best["postprocessing_file"]).with_suffix(".json").read_text()
    np.savez_compressed(
        HERE / f"selection_{name}.npz",
        dataset=json.dumps(dataset_json(LABELS)),
        found=json.dumps({"all_results": information["all_results"], **best}),
        decided=decided,
        **{f"reference/{case}": array for case, array in references.items()},
        **stored,
    )
    chosen = [each["configuration"] for each in best["selected_model_or_models"]]
    print(name, information["all_results"], chosen, best["result_on_crossval_post_pp"])


def main() -> None:
    for name in POSTPROCESSING:
        with tempfile.TemporaryDirectory() as work:
            make_postprocessing(name, Path(work))
    for name, noises, seed in (("ensemble_wins", (1.0, 0.9), 0), ("one_model_wins", (0.6, 2.5), 1)):
        with tempfile.TemporaryDirectory() as work:
            make_selection(name, noises, seed, Path(work))


if __name__ == "__main__":
    main()
