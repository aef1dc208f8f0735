"""Damaged JSON documents are read or refused, never more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segwright.api.checks import one_model
from segwright.core.files.folder_record import FolderRecord
from segwright.core.files.json_documents import parse_document, read_json
from segwright.core.files.names import path_problem
from segwright.data.crossval import splits
from segwright.data.description import load_description
from segwright.data.fingerprint import Fingerprint
from segwright.data.labels import Labels
from segwright.data.laterality import find_pairs
from segwright.data.plan import Plan
from segwright.data.stage_cache import StageCache
from segwright.evaluation.scores import Scores
from segwright.inference.export.postprocessing import PostProcessing
from segwright.inference.folder.log import PredictionLog
from segwright.inference.models.selected import member_folders, read_selected
from segwright.inference.reliability.calibration import Calibration
from segwright.inference.reliability.expected_dice import DiceEstimator
from segwright.networks.build import ArchitectureSpec, build_on_meta
from segwright.preprocessing.plan_validation import validate_components
from segwright.report.sources import read_fold
from segwright.training.monitoring.loggers import JsonlLogger
from segwright.training.monitoring.status import Status
from segwright.training.validation.reliability import CaseStats
from tests.fuzz.isolation import Target, fuzz
from tests.fuzz.made_models import DATASET, FINGERPRINT, PLANS, SUMMARY, write
from tests.fuzz.mutation import mutate_json, mutate_json_lines


def _document(name: str, document: object, read: Callable[[Path], object]) -> Target:
    return Target(make=lambda folder: [write(folder / name, document)], read=read, mutate=mutate_json)


def _read_dataset(path: Path) -> None:
    description = load_description(path)
    assert Labels.from_description(description).num_heads
    find_pairs(description)
    description.meaning()
    json.dumps(description.raw())


def _read_raw_folder(path: Path) -> None:
    record = FolderRecord.load(path)
    if record is not None:
        path_problem(record.folder / "dataset.json")


def _read_plan(path: Path) -> None:
    plan = Plan.load(path)
    for name in plan.configuration_names:
        configuration = plan.configuration(name)
        validate_components(plan, configuration)
        build_on_meta(ArchitectureSpec.from_plan(configuration.architecture.model_dump(by_alias=True)), 1, 2)
        assert configuration.strides
    json.dumps(plan.to_json())


def _read_summary(path: Path) -> None:
    scores = Scores.load(path)
    assert isinstance(scores.mean_dice, float)
    for case in scores.metric_per_case:
        assert isinstance(case.mean_dice, float)
    if scores.metric_per_case:
        scores.save_csv(path.with_suffix(".csv"))
    scores.save(path.with_name("again.json"))


def _read_splits(path: Path) -> None:
    folds = splits.load(path)
    splits.left_out(folds, ["a", "b"])
    for fold in folds:
        splits.overlap(fold)


def _read_postprocessing(path: Path) -> None:
    processing = PostProcessing.load(path)
    processing(np.ones((3, 3, 3), np.uint8))
    processing.to_json()


def _read_journal(path: Path) -> None:
    PredictionLog.open(path, {"model": "x"}, {})


def _read_state(path: Path) -> None:
    cache = StageCache(path.parent)
    cache.is_current("plan", [1])
    cache.record("plan", [2])


def _read_train(path: Path) -> None:
    read_fold(path.parent)
    one_model.recorded_settings(path.parent)
    one_model.differing_settings(path.parent, {"initial_lr": 0.1})


def _read_metrics(path: Path) -> None:
    rows = read_fold(path.parent).epochs
    assert all(isinstance(row, dict) for row in rows)
    JsonlLogger(path).rewind(1)


def _read_quality(path: Path) -> None:
    DiceEstimator.load(path)


def _read_selected(path: Path) -> None:
    read_selected(path.parent)
    member_folders(path.parent)


def _make_metrics(folder: Path) -> list[Path]:
    path = folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, "train_loss": 0.5, "mean_fg_dice": 0.1, "dice_per_class": [0.1, None]} for epoch in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


OBSERVED = {
    "observation": {"volumes": [1.0], "overlaps": [None], "entropy": 0.5, "disagreement": None},
    "reliability": None,
    "mirror_axes": [[0, 1, 2]],
}
STATUS = {
    "schema_version": 1, "state": "training", "epoch": 3, "num_epochs": 9, "epoch_step": 2, "steps_per_epoch": 250,
    "step": 752, "elapsed_s": 9.5, "left_s": None, "budget_s": None, "train_loss": 0.5, "ema_fg_dice": None,
    "host": "here", "process": 123, "updated": 1.7e9,
}  # fmt: skip
QUALITY = {
    "schema_version": 1, "weights": {"a": 0.5}, "offset": 0.1, "mirror_axes": [[0, 1]], "cases": 9, "tau": 0.5,
    "usual": [{"share": 0.9, "low": 1.0, "high": 9.0}], "auroc": None, "error": 0.1, "warn_below": 0.3,
}  # fmt: skip
PREDICTION = {
    "schema_version": 1,
    "model": {"model": "x"},
    "cases": {"a": {"inputs": [["a_0000.nii.gz", 10, 20]], "files": {"a.nii.gz": [1, 2]}, "seconds": 0.5}},
}
SELECTED = {
    "schema_version": 1,
    "dataset": "Dataset001_Test",
    "members": [{"name": "a", "configuration": "3d_fullres", "folds": [0, "all"]}],
    "selection": {"candidates": []},
}
POSTPROCESSING = {
    "schema_version": 1,
    "steps": [{"labels": [1, 2]}],
    "decisions": [{"name": "x", "labels": [1], "before": 0.5, "after": 0.6, "accepted": True}],
}
CALIBRATION = {"schema_version": 1, "temperature": 1.5, "ece_before": 0.2, "ece_after": 0.1, "cases": 4}

TARGETS = {
    "json": _document("any.json", {"a": [1, 2.5, "text", None, True], "b": {"c": [[1, 2], [3, 4]]}}, read_json),
    "dataset": _document("dataset.json", DATASET, _read_dataset),
    "plans": _document("plans.json", PLANS, _read_plan),
    "splits": _document("splits_final.json", [{"train": ["a", "b"], "val": ["c"]}] * 2, _read_splits),
    "fingerprint": _document("dataset_fingerprint.json", FINGERPRINT, Fingerprint.load),
    "summary": _document("summary.json", SUMMARY, _read_summary),
    "prediction": _document("prediction.json", PREDICTION, _read_journal),
    "state": _document("segwright_state.json", {"schema_version": 1, "stages": {"plan": "0"}}, _read_state),
    "raw folder": _document("raw_folder.json", {"schema_version": 1, "folder": "/d", "sha256": "0"}, _read_raw_folder),
    "train": _document("train.json", {"schema_version": 1, "config": {"initial_lr": 0.01}, "seed": 1}, _read_train),
    "metrics": Target(make=_make_metrics, read=_read_metrics, mutate=mutate_json_lines),
    "selected": _document("selection.json", SELECTED, _read_selected),
    "postprocessing": _document("postprocessing.json", POSTPROCESSING, _read_postprocessing),
    "calibration": _document("calibration.json", CALIBRATION, Calibration.load),
    "quality": _document("quality.json", QUALITY, _read_quality),
    "status": _document("status.json", STATUS, lambda path: parse_document(Status, path)),
    "observed": _document("observed.json", OBSERVED, lambda path: parse_document(CaseStats, path)),
}


def test_damaged_documents_are_read_or_refused(fuzz_count: int, fuzz_seed: int) -> None:
    outcome = fuzz("tests.fuzz.test_fuzzed_documents:*", count=fuzz_count * len(TARGETS), seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == fuzz_count * len(TARGETS)
