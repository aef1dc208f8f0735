"""Folders of predictions, and nnU-Net's summary.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from segwright.core.errors import DatasetError, ProblemReport
from segwright.data.images.image_io import write_labels
from segwright.data.labels import Labels
from segwright.evaluation import scores
from segwright.evaluation.scores import Scores, class_key, evaluate, evaluate_case

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
ENDING, READER = ".nii.gz", "SimpleITKIO"
LABELS = Labels.from_dataset_json({"labels": {"background": 0, "Anterior": 1, "Posterior": 2}})
REGIONS = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
)
GEOMETRY = {
    "spacing": [1.0, 1.0, 1.0],
    "geometry": {"spacing": [1.0] * 3, "origin": [0.0] * 3, "direction": np.eye(3).ravel().tolist()},
}


def write(folder: Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    write_labels(array.astype(np.uint8), folder / f"{name}{ENDING}", GEOMETRY, READER)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        for side in ("reference", "prediction"):
            write(tmp_path / side, name, generator.integers(0, 3, (4, 5, 6)))
    return tmp_path / "reference", tmp_path / "prediction"


def test_summary_has_the_schema_of_nnunet(folders: tuple[Path, Path], tmp_path: Path) -> None:
    scores = evaluate(*folders, labels=LABELS, file_ending=ENDING, reader=READER, workers=1)
    scores.save(tmp_path / "summary.json")
    document = json.loads((tmp_path / "summary.json").read_text())
    measures = ["Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"]
    assert set(document["foreground_mean"]) > {*measures, "Precision", "Recall"}
    assert list(document["mean"]) == ["1", "2"]
    first = document["metric_per_case"][0]
    assert list(first) == ["metrics", "prediction_file", "reference_file"]
    assert set(first["metrics"]["1"]) > {*measures, "Volume_ref_mm3"}
    assert isinstance(first["metrics"]["1"]["TP"], int)
    assert document["mean"]["1"]["Dice"] == pytest.approx(
        np.mean([case["metrics"]["1"]["Dice"] for case in document["metric_per_case"]]), abs=1e-15
    )
    assert Scores.load(tmp_path / "summary.json") == scores


def test_a_prediction_of_another_size_is_not_read(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        write(folders[1], name, generator.integers(0, 255, (44, 45, 47)))
    monkeypatch.setattr(scores, "read_label", None)
    with pytest.raises(ProblemReport, match="prediction has shape"):
        evaluate(*folders, labels=LABELS, file_ending=ENDING, reader=READER, workers=1)


def test_regions_are_unions_and_ignored_voxels_do_not_count() -> None:
    reference = np.array([[[0, 1, 2, 3, 3]]])
    prediction = np.array([[[1, 2, 2, 1, 2]]])
    measures = evaluate_case(reference, prediction, REGIONS)
    assert list(measures) == ["(1, 2)", "2"]
    whole, core = measures.values()
    assert (whole.tp, whole.fp, whole.fn, whole.tn) == (2, 1, 0, 0)
    assert (core.tp, core.fp, core.fn, core.tn) == (1, 1, 0, 1)


def test_a_class_without_voxels_follows_both_rules(tmp_path: Path) -> None:
    for side in ("reference", "prediction"):
        write(tmp_path / side, "a", np.ones((2, 3, 4)))
    scores = evaluate(
        tmp_path / "reference", tmp_path / "prediction", labels=LABELS, file_ending=ENDING, reader=READER, workers=1
    )
    assert math.isnan(scores.foreground_mean.dice)
    assert scores.mean_dice == 1
    assert scores.metric_per_case[0].mean_dice == 1
    scores.save(tmp_path / "summary.json")
    assert '"Dice": NaN' in (tmp_path / "summary.json").read_text()


@pytest.mark.parametrize(("text", "key"), [("1", 1), ("(1, 2)", (1, 2)), ("(3,)", (3,))])
def test_class_keys_are_read_back(text: str, key: int | tuple[int, ...]) -> None:
    assert class_key(text) == key


def test_every_bad_pair_is_reported_at_once(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    write(prediction, "a", np.zeros((4, 5, 7)))
    (prediction / f"b{ENDING}").write_bytes(b"not an image")
    with pytest.raises(ProblemReport) as caught:
        evaluate(reference, prediction, labels=LABELS, file_ending=ENDING, reader=READER, workers=1)
    assert len(caught.value.problems) == 2
    assert "prediction has shape (4, 5, 7), its reference (4, 5, 6)" in str(caught.value)


def test_a_prediction_without_reference_is_a_problem(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    (reference / f"b{ENDING}").unlink()
    with pytest.raises(ProblemReport, match=r"b\.nii\.gz: prediction without a reference"):
        evaluate(reference, prediction, labels=LABELS, file_ending=ENDING, reader=READER, workers=1)


def test_a_reference_without_prediction_is_a_problem_only_on_request(folders: tuple[Path, Path]) -> None:
    reference, prediction = folders
    (prediction / f"b{ENDING}").unlink()
    arguments = {"labels": LABELS, "file_ending": ENDING, "reader": READER, "workers": 1}
    assert len(evaluate(reference, prediction, **arguments).metric_per_case) == 1
    with pytest.raises(ProblemReport, match=r"b\.nii\.gz: reference without a prediction"):
        evaluate(reference, prediction, **arguments, require_all=True)


def test_a_folder_without_predictions_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no prediction ends in \.nii\.gz"):
        evaluate(folders[0], tmp_path / "empty", labels=LABELS, file_ending=ENDING, reader=READER)


@pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="the reference model is not here")
def test_the_reference_summary_is_reproduced() -> None:
    scores = evaluate(
        SHARED / "Dataset004_Hippocampus" / "labelsTr",
        SHARED / "reference" / "predictions",
        labels=LABELS,
        file_ending=ENDING,
        reader=READER,
    )
    expected = {case.case: case for case in Scores.load(SHARED / "reference" / "summary_fold_0.json").metric_per_case}
    assert len(scores.metric_per_case) == 6
    for case in scores.metric_per_case:
        for key, measures in case.metrics.items():
            shared = expected[case.case].metrics[key].model_dump()
            assert {name: measures.model_dump()[name] for name in shared} == pytest.approx(shared, abs=1e-9)


@pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="the reference model is not here")
def test_the_means_of_the_reference_summary_are_reproduced() -> None:
    expected = Scores.load(SHARED / "reference" / "summary_fold_0.json")
    scores = Scores.of(expected.metric_per_case)
    assert scores.foreground_mean.model_dump() == pytest.approx(expected.foreground_mean.model_dump(), abs=1e-9)
    for key, measures in scores.mean.items():
        assert measures.model_dump() == pytest.approx(expected.mean[key].model_dump(), abs=1e-9)
