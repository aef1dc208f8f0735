"""`label_map` of dataset.json: what it may hold, and what reading does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import write_dataset

from segwright.core.errors import DatasetError, ProblemReport
from segwright.data.checks import check
from segwright.data.crossval.strata import labels_of_cases
from segwright.data.dataset import load
from segwright.data.description import load_description
from segwright.data.images.image_io import read_label, write_labels
from segwright.data.label_maps import mapped_values
from segwright.data.labels import Labels

LABELS = {"background": 0, "organ": 1, "lesion": 2}


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"255": 3}, r"label_map: maps 255 to 3, which no label has; expected one of 0, 1, 2"),
        (
            {"2": 1},
            r"label_map: maps 2, which is the value of label 'lesion' itself, so that files with it have two meanings",
        ),
        ({"0": 1}, r"label_map: maps 0, which is the value of label 'background' itself"),
        ({"liver": 1}, r"label_map: maps 'liver' to 1, expected whole numbers"),
        ({"1.5": 1}, r"label_map: maps '1.5' to 1, expected whole numbers"),
        ({"255": "organ"}, r"label_map: maps '255' to 'organ', expected whole numbers"),
        ({"255": True}, r"label_map: maps '255' to True, expected whole numbers"),
        ({"255": 1, "0255": 2}, r"label_map: maps 255 twice, as '0255' too; leave one"),
        ([255, 1], r"label_map: is a list, expected an object of value -> label"),
    ],
)
def test_an_impossible_map_is_refused_by_name(tmp_path: Path, label_map: Any, message: str) -> None:
    folder = write_dataset(tmp_path / "d", num_cases=1, changes={"label_map": label_map})
    with pytest.raises(ProblemReport, match=message):
        load_description(folder / "dataset.json")
    assert any("label_map" in str(problem) for problem in check(folder).errors)
    with pytest.raises(DatasetError, match="maps|expected an object"):
        Labels.from_dataset_json({"labels": LABELS, "label_map": label_map})


def test_background_regions_and_ignore_may_be_targets() -> None:
    declared = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    document = {"labels": declared, "regions_class_order": [1, 2], "label_map": {"7": 0, "8": 2, "254": 3, "-1": 0}}
    assert Labels.from_dataset_json(document).label_map == {7: 0, 8: 2, 254: 3, -1: 0}


def test_labels_with_another_map_are_the_same_task() -> None:
    assert Labels(LABELS) == Labels(LABELS, label_map={255: 1})


def test_values_are_replaced_in_a_copy_and_labels_are_left() -> None:
    array = np.array([[0, 255, 1], [100, 255, 2]], np.float32)
    mapped = mapped_values(array, {255: 1, 100: 2})
    assert mapped.tolist() == [[0, 1, 1], [2, 1, 2]]
    assert array.tolist() == [[0, 255, 1], [100, 255, 2]]
    assert mapped_values(mapped, {255: 1, 100: 2}) is mapped


def rewrite_labels(folder: Path, values: dict[int, int]) -> None:
    """Replace values in the label files."""
    dataset = load(folder)
    for case in dataset.cases:
        assert case.label is not None
        volume = read_label(case.label, dataset.reader, label_map=values)
        write_labels(volume.array[0].astype(np.uint8), case.label, volume.properties, dataset.reader)


def test_check_and_labels_of_cases_read_through_the_map(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", num_cases=2)
    before = labels_of_cases(load(folder))
    rewrite_labels(folder, {1: 255, 2: 100})
    [first, _] = check(folder).errors
    assert "unexpected label value 100, 255, dataset.json declares 0, 1, 2" in str(first)
    assert "add a label_map" in str(first)
    document = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**document, "label_map": {"255": 1, "100": 2}}))
    assert check(folder).is_clean
    assert labels_of_cases(load(folder)) == before == {"case_00": {1, 2}, "case_01": {1, 2}}
