"""Verbs on folders of predictions: post-processing, ensembles, accumulated folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from journeys import Journey, call

from segwright.data.images.image_io import read_label, write_labels

READER = "SimpleITKIO"


def test_folds_are_gathered(journey: Journey, tmp_path: Path) -> None:
    done = call("accumulate-crossval", journey.model, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    fold = json.loads((journey.model / "fold_0" / "validation" / "summary.json").read_text())
    assert summary["mean"] == fold["mean"]
    refused = call("accumulate-crossval", journey.model, "--folds", "3")
    assert (refused.exit_code, "fold 3 has not predicted" in refused.stderr) == (1, True)


def test_postprocessing_is_found_and_applied(journey: Journey, tmp_path: Path) -> None:
    references = journey.dataset / "labelsTs"
    predictions, out = tmp_path / "predictions", tmp_path / "out"
    predictions.mkdir()
    for file in sorted(references.glob("*.nii.gz")):
        volume = read_label(file, READER)
        label_map = volume.array[0].astype(np.uint8)
        label_map[-1, -1, -1] = 1
        write_labels(label_map, predictions / file.name, volume.properties, READER)
    found = call("determine-postprocessing", references, predictions)
    assert found.exit_code == 0, found.stderr
    assert "accepted" in found.stdout
    document = json.loads((predictions / "postprocessing.json").read_text())
    assert [1] in [step["labels"] for step in document["steps"]] or [1, 2] in [s["labels"] for s in document["steps"]]
    assert document["dice_after"] > document["dice_before"]
    applied = call(
        *("apply-postprocessing", "-i", predictions, "-o", out),
        *("--dataset-json", journey.dataset / "dataset.json"),
    )
    assert applied.exit_code == 0, applied.stderr
    for file in out.glob("*.nii.gz"):
        assert read_label(file, READER).array[0, -1, -1, -1] == 0
    assert len([*out.glob("*.nii.gz")]) == 2
    again = call("apply-postprocessing", "-i", out, "-o", out, "--postprocessing", predictions)
    assert again.exit_code == 0, again.stderr


def test_saved_probabilities_are_averaged(journey: Journey, tmp_path: Path) -> None:
    images = journey.dataset / "imagesTs"
    for kind in ("npz", "b2nd"):
        options = ("--no-mirroring",) if kind == "npz" else ()
        done = call(
            *("predict", "-m", journey.model, "-i", images, "-o", tmp_path / kind, "--probabilities", kind),
            *("--device", "cpu", *options),
        )
        assert done.exit_code == 0, done.stderr
    averaged = call("ensemble", tmp_path / "npz", tmp_path / "b2nd", "-o", tmp_path / "out")
    assert averaged.exit_code == 0, averaged.stderr
    assert "2 cases" in averaged.stdout
    single = call("ensemble", tmp_path / "npz", "-o", tmp_path / "single")
    assert (single.exit_code, "at least two folders" in single.stderr) == (1, True)


def test_labels_can_be_named_instead_of_a_dataset(journey: Journey, tmp_path: Path) -> None:
    predictions = tmp_path / "far" / "predictions"
    predictions.mkdir(parents=True)
    references = tmp_path / "away" / "references"
    references.mkdir(parents=True)
    for file in (journey.dataset / "labelsTs").iterdir():
        for folder in (references, predictions):
            (folder / file.name).write_bytes(file.read_bytes())
    done = call("evaluate", references, predictions, "--labels", "1,2", "--json")
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(done.stdout)["mean"]) == {"1", "2", "mean"}
    assert json.loads(done.stdout)["mean"]["2"]["Dice"] == 1
    wrong = call("evaluate", references, predictions, "--labels", "organ")
    assert (wrong.exit_code, "'organ' is not a label" in wrong.stderr) == (1, True)
