"""Results and table of the accuracy benchmark; no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import accuracy


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
