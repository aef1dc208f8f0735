"""Predictions find the references of their cases, whatever these are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segwright.api.datasets.references import listed_references
from segwright.core.errors import DatasetError, ProblemReport
from segwright.evaluation.matching import pair_files
from segwright.evaluation.scores import CaseScores


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def listing(folder: Path, labels: dict[str, str]) -> Path:
    """Write a dataset.json whose file lists give a label to each case."""
    folder.mkdir(parents=True, exist_ok=True)
    for label in labels.values():
        touch((folder / label).parent, Path(label).name)
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1},
        "numTraining": len(labels),
        "file_ending": ".nii.gz",
        "dataset": {case: {"images": [label], "label": label} for case, label in labels.items()},
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_a_case_is_called_as_its_prediction() -> None:
    for file in ("/x/fold_0/validation/patient3.nii.gz", "C:\\x\\validation\\patient3.nii.gz"):
        scores = CaseScores(metrics={}, prediction_file=file, reference_file="/raw/sub-3/seg.nii.gz")
        assert scores.case == "patient3.nii.gz"


def test_references_of_other_names_are_those_that_the_dataset_lists(tmp_path: Path) -> None:
    raw = listing(tmp_path / "raw", {"patient0": "labelsTr/seg_0.nii.gz", "patient1": "labelsTr/seg_1.nii.gz"})
    predictions = touch(tmp_path / "out", "patient1.nii.gz")
    for truth in (raw, raw / "labelsTr"):
        listed = listed_references(truth, {})
        pairs = pair_files(truth, predictions, ".nii.gz", listed=listed)
        assert pairs == [(raw / "labelsTr" / "seg_1.nii.gz", predictions / "patient1.nii.gz")]


def test_labels_that_all_have_one_name_are_told_apart(tmp_path: Path) -> None:
    raw = listing(tmp_path / "raw", {"sub-0": "sub-0/seg.nii.gz", "sub-1": "sub-1/seg.nii.gz"})
    predictions = touch(tmp_path / "out", "sub-0.nii.gz", "sub-1.nii.gz")
    pairs = pair_files(raw, predictions, ".nii.gz", listed=listed_references(raw, {}))
    assert [reference.parent.name for reference, _ in pairs] == ["sub-0", "sub-1"]


def test_lists_count_more_than_equal_names(tmp_path: Path) -> None:
    raw = listing(tmp_path / "raw", {"c0": "labelsTr/c1.nii.gz", "c1": "labelsTr/c0.nii.gz"})
    predictions = touch(tmp_path / "out", "c0.nii.gz", "c1.nii.gz")
    pairs = pair_files(raw / "labelsTr", predictions, ".nii.gz", listed=listed_references(raw / "labelsTr", {}))
    assert [reference.name for reference, _ in pairs] == ["c1.nii.gz", "c0.nii.gz"]


def test_predictions_that_no_list_names_are_paired_by_name(tmp_path: Path) -> None:
    raw = listing(tmp_path / "raw", {"patient0": "labelsTr/seg_0.nii.gz"})
    predictions = touch(tmp_path / "out", "seg_0.nii.gz")
    listed = listed_references(raw / "labelsTr", {})
    pairs = pair_files(raw / "labelsTr", predictions, ".nii.gz", listed=listed)
    assert pairs == [(raw / "labelsTr" / "seg_0.nii.gz", predictions / "seg_0.nii.gz")]


def test_lists_in_a_model_folder_are_not_followed(tmp_path: Path) -> None:
    model = listing(tmp_path / "model", {"patient0": "../secret.nii.gz"})
    touch(model, "plans.json")
    assert listed_references(model, {}) == {}
    raw = listing(tmp_path / "raw", {"patient0": "../secret.nii.gz"})
    assert listed_references(touch(raw / "labelsTr"), {}) == {}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("case.NII.GZ", "no prediction ends in .nii.gz; found case.NII.GZ, which ends in .NII.GZ"),
        ("case.nrrd", "found case.nrrd, which ends in .nrrd, not in .nii.gz"),
        ("sub/case.nii.gz", "found sub, which is a folder that holds sub/case.nii.gz"),
    ],
)
def test_what_was_found_in_place_of_predictions_is_named(tmp_path: Path, found: str, told: str) -> None:
    touch((tmp_path / "out" / found).parent, Path(found).name)
    with pytest.raises(DatasetError, match=told):
        pair_files(touch(tmp_path / "truth", "case.nii.gz"), tmp_path / "out", ".nii.gz")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("Gr\u00fcn.nii.gz", "whose accents are encoded in another way"),
        ("Gru\u0308n.nii", "images and labels must have the same file_ending"),
        ("Gru\u0308n_0000.nii.gz", "label maps have no channel number"),
    ],
)
def test_what_was_found_in_place_of_a_reference_is_named(tmp_path: Path, found: str, told: str) -> None:
    predictions = touch(tmp_path / "out", "Gru\u0308n.nii.gz")
    with pytest.raises(ProblemReport, match=f"without a reference in .*; found .*{told}"):
        pair_files(touch(tmp_path / "truth", found), predictions, ".nii.gz")
