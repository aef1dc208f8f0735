"""Folds, results and table of the accuracy benchmark; no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import accuracy
from segwright.data.splits import default_splits

CASES = [f"patient{number:02d}_frame{frame}" for number in range(12) for frame in (1, 2)]


def test_folds_without_groups_are_nnunet_s() -> None:
    folds = accuracy.grouped_folds(CASES, None)
    assert [(tuple(fold["train"]), tuple(fold["val"])) for fold in folds] == [
        (fold.train, fold.val) for fold in default_splits(CASES)
    ]


def test_cases_of_a_patient_stay_in_one_fold() -> None:
    folds = accuracy.grouped_folds(CASES, r"patient\d+")
    held_out = [{case.split("_")[0] for case in fold["val"]} for fold in folds]
    assert all(len(fold["val"]) == 2 * len(patients) for fold, patients in zip(folds, held_out, strict=True))
    assert sorted(patient for patients in held_out for patient in patients) == sorted({c[:9] for c in CASES})
    assert all(
        not {case[:9] for case in fold["train"]} & patients for fold, patients in zip(folds, held_out, strict=True)
    )


def test_there_are_no_more_folds_than_groups() -> None:
    assert len(accuracy.grouped_folds(CASES[:6], r"patient\d+")) == 3


def test_runs_in_the_file_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = tmp_path / "accuracy.json", []
    result = {"steps": 400, "seconds": 100, "total_s": 120, "dice": {"1": 0.8, "mean": 0.8}}

    class Sides:
        def __init__(self, name: str, programs: Path | None) -> None:
            calls.append(name)

        def prepare(self) -> None: ...
        def ours(self, run: accuracy.Run) -> tuple[Path, dict[str, int]]:
            return tmp_path, {"steps": 400, "seconds": 100}

        nnunet = ours

        def score(self, predictions: Path) -> dict[str, dict[str, float]]:
            return {"dice": {"1": 0.7 + 0.1 * len(calls), "mean": 0.7 + 0.1 * len(calls)}}

    monkeypatch.setattr(accuracy, "Sides", Sides)
    monkeypatch.setattr(accuracy.oracle, "set_up", lambda: tmp_path)
    arguments = ["--datasets", "drive", "--minutes", "0", "--sides", "ours", "-o", str(file)]
    assert accuracy.main(arguments) == 0
    assert calls == ["drive", "drive"]  # two seeds
    assert accuracy.main(arguments) == 0
    assert calls == ["drive", "drive"]
    saved = json.loads(file.read_text())["runs"]
    assert set(saved) == {f"drive, 400 steps, ours, seed {seed}" for seed in (0, 1)}
    assert saved["drive, 400 steps, ours, seed 0"]["steps"] == result["steps"]
    lines = list(accuracy.table(json.loads(file.read_text())))
    assert lines[2].startswith("| drive | 400 steps | not measured | 0.850 (0.800 to 0.900), 400, ")
