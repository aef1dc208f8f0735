"""Simulated failures are detected by the expected Dice, or flagged as out-of-distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from journeys import call

from segwright import api
from segwright.data.images.image_io import read_label
from segwright.data.labels import Labels
from segwright.data.phantom import LABELS, Phantom, make_phantom, write_dataset
from segwright.evaluation.dice_estimator import auroc
from segwright.evaluation.scores import evaluate_case
from segwright.workspace import Workspace

EDGE = 24
NUM_USUAL = 60
UNLIKE_TRAINING = ", in training "
ALIKE = ("organ missing", "all missing")
"""Failures with in-distribution images; they show by missing structures."""
UNLIKE = ("noise", "nothing but noise", "inverted", "other scale", "gamma")


def planted(kind: str, phantom: Phantom, draw: np.random.Generator) -> npt.NDArray[np.float32]:
    image = phantom.image.copy()
    if kind == "usual":
        return image
    if kind in ALIKE:
        gone = phantom.label == LABELS["organ"] if kind == "organ missing" else phantom.label > 0
        image[gone] = draw.normal(100, 12, int(gone.sum()))
        return image
    changed = {
        "noise": image + draw.normal(scale=100, size=image.shape),
        "nothing but noise": draw.normal(100, 60, size=image.shape),
        "inverted": image.max() - image,
        "other scale": image * 1000,
        "gamma": np.sign(image) * (np.abs(image) / 200) ** 3 * 200,
    }[kind]
    return changed.astype(np.float32)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the records of usual and simulated failures, each with its `kind` and true `dice`."""
    work = tmp_path_factory.mktemp("failures")
    workspace, raw = Workspace.under(work), work / "raw" / "Dataset008_Failures"
    write_dataset(raw, num_training=30, num_test=0, edge=EDGE)
    api.run(
        raw,
        workspace=workspace,
        configurations=["3d_fullres"],
        folds=[0, 1],
        network="untrained_network:build",
        settings={
            "num_epochs": 1,
            "num_iterations_per_epoch": 1,
            "num_val_iterations_per_epoch": 1,
            "initial_lr": 1e-9,
        },
        device="cpu",
    )
    images, draw, truths = work / "images", np.random.default_rng(0), {}
    images.mkdir()
    kinds = [*["usual"] * NUM_USUAL, *[kind for kind in (*ALIKE, *UNLIKE) for _ in range(2)]]
    for index, kind in enumerate(kinds):
        phantom = make_phantom(1000 + index, edge=EDGE)
        truths[f"c{index:03d}"] = phantom.label
        image = nib.Nifti1Image(planted(kind, phantom, draw).transpose(2, 1, 0), np.eye(4))
        nib.save(image, images / f"c{index:03d}_0000.nii.gz")
    model = workspace.selected_folder(raw.name)
    done = call(
        *("predict", "--model", model, "-i", images, "-o", work / "out", "--device", "cpu", "--json", "--trust-code")
    )
    assert done.exit_code == 0, done.stderr
    labels = Labels(LABELS, None)
    records = json.loads(done.stdout)
    for record, kind in zip(records, kinds, strict=True):
        found = read_label(Path(record["output"]), "SimpleITKIO").array[0].astype(np.int64)
        measures = evaluate_case(truths[record["case"]].astype(np.int64), found, labels)
        record |= {"kind": kind, "dice": float(np.mean([each.dice for each in measures.values()]))}
    return records


def test_the_expected_dice_tells_the_worst_fifth(predicted: list[dict[str, Any]]) -> None:
    dice, expected = (np.array([record[key] for record in predicted]) for key in ("dice", "expected_dice"))
    failed = dice <= np.quantile(dice, 0.2)
    assert dice[~failed].mean() > 0.8 > dice[failed].mean()  # or there would be nothing to tell
    found = auroc(expected, failed)
    assert found is not None
    assert found >= 0.8


def test_every_planted_failure_is_told(predicted: list[dict[str, Any]]) -> None:
    told = [record["kind"] for record in predicted if record["warnings"]]
    assert all(told.count(kind) == 2 for kind in (*ALIKE, *UNLIKE)), told


def test_usual_cases_are_told_only_where_they_failed(predicted: list[dict[str, Any]]) -> None:
    usual = [record for record in predicted if record["kind"] == "usual"]
    assert not [record for record in usual if UNLIKE_TRAINING in " ".join(record["warnings"])]
    assert [record for record in usual if record["warnings"] and record["dice"] > 0.6] == []


def test_inputs_unlike_the_training_cases_say_what_is_unlike(predicted: list[dict[str, Any]]) -> None:
    for record in predicted:
        if record["kind"] in UNLIKE:
            assert UNLIKE_TRAINING in " ".join(record["warnings"]), record
