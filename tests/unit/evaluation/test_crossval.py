"""Held-out predictions gathered over the folds that there are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segwright.core.errors import ModelError, ProblemReport, WorkspaceError
from segwright.data.labels import Labels
from segwright.evaluation.crossval import accumulate, accumulated_name, read_crossval
from segwright.evaluation.scores import CaseScores, Scores, evaluate_case

DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "numTraining": 5, "file_ending": ".tif"}
LABELS = Labels.from_dataset_json(DATASET)


def add_fold(model: Path, fold: int | str, cases: list[str]) -> None:
    folder = model / f"fold_{fold}" / "validation"
    folder.mkdir(parents=True)
    scores = []
    for index, case in enumerate(cases):
        (folder / f"{case}.tif").write_text(f"{fold} {case}")
        reference = np.ones((1, 2, 2), np.int64)
        prediction = reference.copy()
        prediction.flat[:index] = 0
        metrics = evaluate_case(reference, prediction, LABELS)
        scores.append(CaseScores(metrics=metrics, prediction_file=f"/x/{case}.tif", reference_file=f"/y/{case}.tif"))
    Scores.of(scores).save(folder / "summary.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    (folder / "plans.json").write_text("{}")
    add_fold(folder, 0, ["d", "a"])
    add_fold(folder, 2, ["b", "c", "e"])
    add_fold(folder, "all", ["a", "b", "c", "d", "e"])
    (folder / "fold_1").mkdir()
    return folder


def test_the_folds_that_there_are_count(model: Path, tmp_path: Path) -> None:
    found = read_crossval(model)
    assert found.folds == (0, 2)
    assert list(found.cases) == ["a", "d", "b", "c", "e"]
    assert list(found.only([2]).cases) == ["b", "c", "e"]
    scores = accumulate(found, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*(f"{case}.tif" for case in "abcde"), "dataset.json", "plans.json", "summary.json"}
    assert (tmp_path / "out" / "b.tif").read_text() == "2 b"
    # Over all cases, not the mean of the folds' means.
    assert scores.mean["1"].dice == pytest.approx(np.mean([1, 6 / 7, 1, 6 / 7, 4 / 6]))
    assert [case.case for case in scores.metric_per_case] == [f"{case}.tif" for case in "abcde"]
    assert scores.metric_per_case[0].prediction_file == str(tmp_path / "out" / "a.tif")
    assert Scores.load(tmp_path / "out" / "summary.json") == scores
    with pytest.raises(WorkspaceError, match="already exists"):
        accumulate(found, tmp_path / "out")


def test_folds_can_be_chosen_and_must_be_there(model: Path) -> None:
    assert read_crossval(model, [2]).folds == (2,)
    with pytest.raises(ModelError, match="model: fold 1 has not predicted its held-out cases; folds 0, 2 have"):
        read_crossval(model, [0, 1])
    with pytest.raises(ModelError, match="folds 1, 3 have not predicted their held-out cases; folds 0, 2 have"):
        read_crossval(model, [3, 0, 1])
    assert accumulated_name((0, 2)) == "crossval_results_folds_0_2"


def test_a_case_in_two_folds_and_missing_files_are_all_named(model: Path) -> None:
    add_fold(model, 4, ["a", "f"])
    (model / "fold_2" / "validation" / "c.tif").unlink()
    with pytest.raises(ProblemReport) as caught:
        read_crossval(model)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "c.tif: no such file" in lines[0]
    assert "case a: held out by fold 0 and by fold 4" in lines[1]
