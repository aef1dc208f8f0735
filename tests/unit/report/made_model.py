"""A model folder as a training leaves it, made without training: the true labels, shifted, are its predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK

from segwright import api
from segwright.data.description import load_description
from segwright.data.labels import Labels
from segwright.data.phantom import write_dataset
from segwright.evaluation.scores import ExtraMetrics, Scores, evaluate
from segwright.workspace import Workspace

DATASET = "Dataset009_Shown"
EVIL = "<script>alert(1)</script>"


def make_model(folder: Path, *, evil: bool = False) -> Path:
    """Write a raw dataset, its plan and one validated fold, and return the model folder.

    Args:
        folder: work folder.
        evil: give a label, the dataset and a note names that would do harm in a page that does not escape them.
    """
    workspace = Workspace.under(folder)
    raw = workspace.raw / DATASET
    write_dataset(raw, num_training=6, num_test=0, edge=16)
    if evil:
        document = json.loads((raw / "dataset.json").read_text())
        names = list(document["labels"])
        document["labels"] = {(EVIL if name == names[1] else name): value for name, value in document["labels"].items()}
        document["channel_names"] = {"0": f"MRI {EVIL}"}
        document["description"] = EVIL
        (raw / "dataset.json").write_text(json.dumps(document))
    plan = api.plan(raw, workspace=workspace, workers=1)
    model = workspace.model_folder(DATASET, "Trainer", plan.plans_name, "3d_fullres")
    fold = workspace.fold_folder(model, 0)
    validation = fold / "validation"
    validation.mkdir(parents=True)
    plan.save(model / "plans.json")
    for name, source in (
        ("dataset.json", raw / "dataset.json"),
        ("dataset_fingerprint.json", workspace.fingerprint_file(DATASET)),
    ):
        (model / name).write_bytes(source.read_bytes())
    for shift, label in enumerate(sorted((raw / "labelsTr").iterdir())):
        image = SimpleITK.ReadImage(str(label))
        moved = SimpleITK.GetImageFromArray(np.roll(SimpleITK.GetArrayFromImage(image), shift % 4, axis=1))
        moved.CopyInformation(image)
        SimpleITK.WriteImage(moved, str(validation / label.name))
    description = load_description(raw / "dataset.json")
    scores = evaluate(
        raw / "labelsTr",
        validation,
        labels=Labels.from_description(description),
        file_ending=description.file_ending,
        reader=plan.image_reader_writer,
        workers=1,
        extra=ExtraMetrics(surface=True),
    )
    scores.save(validation / "summary.json")
    rows = [
        {"epoch": k, "train_losses": 0.5 - k / 10, "val_losses": 0.4, "mean_fg_dice": 0.5, "ema_fg_dice": 0.5,
         "dice_per_class_or_region": [0.5, None], "lrs": 0.01, "steps": 3, "elapsed_s": 2.0 * k,
         "loader_wait_s": 0.001 + k / 1000}
        for k in range(4)
    ]  # fmt: skip
    (fold / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 4, "tr')
    record = {
        "configuration": "3d_fullres",
        "notes": [EVIL] if evil else ["a note"],
        "versions": {"torch": "2"},
        "plans_hash": "abc",
    }
    (fold / "train.json").write_text(json.dumps(record))
    return model


def summary_of(model: Path) -> Scores:
    return Scores.load(model / "fold_0" / "validation" / "summary.json")
