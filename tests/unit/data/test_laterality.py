"""Left and right: which names pair up, what a value and a head become in a mirror, how images lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from segwright.core.errors import PlanError
from segwright.data.description import DatasetDescription
from segwright.data.images.orientation import lateral_axis
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs, find_pairs, mirrored_heads, mirrored_values
from segwright.data.plan import Plan

WAYS = {"R": 1, "L": -1, "A": 2, "P": -2, "S": 3, "I": -3}
"""Axis of the body, counted from 1, and direction in RAS+."""


def description(labels: dict[str, Any], **more: Any) -> DatasetDescription:
    document = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    return DatasetDescription.model_validate(document | more)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("left kidney", "right kidney"),
        ("Kidney.Left", "Kidney.Right"),
        ("rib_left_1", "rib_right_1"),
        ("LEFT-hip", "right-hip"),
    ],
)
def test_names_that_differ_in_the_side_alone_are_a_pair(left: str, right: str) -> None:
    assert find_pairs(description({"background": 0, right: 1, "liver": 2, left: 3})) == ((left, right),)


@pytest.mark.parametrize("names", [("kidney_left", "lung_right"), ("cleft", "cright"), ("kidney_left", "kidney")])
def test_other_names_are_none(names: tuple[str, str]) -> None:
    assert find_pairs(description({"background": 0, names[0]: 1, names[1]: 2})) == ()


def test_a_declaration_replaces_what_names_tell() -> None:
    labels = {"background": 0, "kidney_left": 1, "kidney_right": 2, "L": 3, "R": 4}
    assert find_pairs(description(labels, label_pairs=[["L", "R"]])) == (("L", "R"),)
    assert find_pairs(description(labels, label_pairs=[])) == ()


@pytest.mark.parametrize(("pairs", "message"), [([["L", "X"]], r"\['X'\]"), ([["L", "R"], ["R", "L"]], "twice")])
def test_a_wrong_declaration_is_refused(pairs: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        description({"background": 0, "L": 1, "R": 2}, label_pairs=pairs)


def test_values_and_heads_of_labels() -> None:
    labels = Labels({"background": 0, "liver": 1, "kidney_left": 2, "kidney_right": 3, "ignore": 4})
    pairs = (("kidney_left", "kidney_right"),)
    assert mirrored_values(labels, pairs) == {0: 0, 1: 1, 2: 3, 3: 2, 4: 4}
    assert mirrored_heads(labels, pairs) == (0, 1, 3, 2)


def test_values_and_heads_of_regions() -> None:
    declared = {"background": 0, "left": (1, 2), "left core": 2, "right": (3, 4), "right core": 4, "all": (1, 2, 3, 4)}
    labels = Labels(declared, (1, 2, 3, 4, 5))
    pairs = (("left", "right"), ("left core", "right core"))
    assert mirrored_values(labels, pairs) == {0: 0, 1: 3, 2: 4, 3: 1, 4: 2}
    assert mirrored_heads(labels, pairs) == (2, 3, 0, 1, 4)


def test_unequal_sides_do_not_decide_the_values() -> None:
    labels = Labels({"background": 0, "left": (1, 2), "right": (3,)}, (1, 2))
    assert mirrored_values(labels, (("left", "right"),)) is None


def test_a_flat_patch_lacks_the_first_axis() -> None:
    sides = LabelPairs(pairs=(("L", "R"),), axes=(0, 2), swap=False)
    assert sides.in_patch(3) == (0, 2)
    assert sides.in_patch(2) == (1,)


@pytest.mark.parametrize("entry", [{"axes": [0], "swap": True}, {"pairs": [["a"]], "axes": [0], "swap": True}, []])
def test_an_edited_entry_is_refused(entry: Any) -> None:
    plan = Plan.model_construct(plans_name="p", segwright={"left_right": entry})
    with pytest.raises(PlanError, match=r"segwright.left_right must have"):
        LabelPairs.of_plan(plan)


@pytest.mark.parametrize(
    ("codes", "axis", "same"), [("LPS", 2, True), ("LAI", 2, True), ("RAS", 2, False), ("PIR", 0, False)]
)
@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_the_lateral_axis_of_a_file(tmp_path: Path, codes: str, axis: int, same: bool, reader: str) -> None:
    found = []
    for name in ("LPS", codes):
        affine = np.eye(4)
        affine[:3, :3] = np.stack([np.sign(WAYS[code]) * np.eye(3)[abs(WAYS[code]) - 1] for code in name], axis=1)
        assert "".join(nibabel.aff2axcodes(affine)) == name
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), tmp_path / f"{name}.nii.gz")
        found.append(lateral_axis(tmp_path / f"{name}.nii.gz", reader))
    assert found[0] is not None
    assert found[1] is not None
    assert found[1][0] == axis
    assert (found[1] == found[0]) == same


def test_readers_that_turn_images_know_and_pictures_do_not(tmp_path: Path) -> None:
    assert lateral_axis(tmp_path / "unread.nii.gz", "SimpleITKIOWithReorient") == (2, True)
    assert lateral_axis(tmp_path / "unread.png", "NaturalImage2DIO") is None
