"""Held-out predictions that are kept: undamaged ones of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from segwright.core.files.json_documents import write_json
from segwright.training.validation.final import RECORD_JSON, PredictionRecord


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"voxels")
    PredictionRecord.open(tmp_path, "weights").add(path)
    return path


def test_an_undamaged_prediction_is_kept(file: Path) -> None:
    assert PredictionRecord.open(file.parent, "weights").has(file)
    assert not PredictionRecord.open(file.parent, "others").has(file)


def test_a_damaged_prediction_of_the_same_size_is_made_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_bytes(b"voxelS")
    assert not PredictionRecord.open(file.parent, "weights").has(file)
    assert "a.nii.gz: is damaged or was changed; predicted again" in caplog.text


def test_a_damaged_record_keeps_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file.parent / RECORD_JSON
    path.write_text(path.read_text().replace("weights", "weightz"))
    found = PredictionRecord.open(file.parent, "weightz")
    assert not found.has(file)
    assert "predictions.json: damaged" in caplog.text
    assert "held-out cases are predicted again" in caplog.text


def test_a_record_of_an_earlier_version_goes_by_size(file: Path) -> None:
    write_json(file.parent / RECORD_JSON, {"weights_hash": "weights", "files": {file.name: 6}})
    assert PredictionRecord.open(file.parent, "weights").has(file)
