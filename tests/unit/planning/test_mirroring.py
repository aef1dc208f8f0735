"""What a plan says about left and right."""

from __future__ import annotations

from typing import Any

import pytest

from segwright.data.description import DatasetDescription
from segwright.data.laterality import FoundPairs, LabelPairs
from segwright.planning.label_pairs import Lateral, choose_mirroring


def description(**more: Any) -> DatasetDescription:
    labels = {"background": 0, "hip_left": 1, "hip_right": 2}
    document = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    return DatasetDescription.model_validate(document | more)


@pytest.mark.parametrize(
    ("lateral", "axes", "swap"),
    [
        ({(2, True)}, (1,), True),
        ({(2, True), (2, False)}, (1,), False),
        ({(2, True), (0, True)}, (0, 1), False),
        ({(2, True), None}, (0, 1, 2), False),
        (set(), (0, 1, 2), False),
    ],
)
def test_the_ways_images_lie_decide(lateral: set[Lateral | None], axes: tuple[int, ...], swap: bool) -> None:
    sides, (decision,) = choose_mirroring(description(), (0, 2, 1), lateral)
    assert sides is not None
    assert sides.axes == axes
    assert sides.swap == swap
    assert decision.value["pairs"] == ["hip_left | hip_right"]
    assert "found by name" in decision.reason


def test_regions_of_unequal_sides_are_not_swapped() -> None:
    labels = {"background": 0, "hip_left": [1, 2], "hip_right": [3]}
    unequal = description(labels=labels, regions_class_order=[1, 2])
    sides, _ = choose_mirroring(unequal, (0, 1, 2), {(2, True)})
    assert sides is not None
    assert not sides.swap


def test_labels_without_sides_leave_no_trace() -> None:
    assert choose_mirroring(description(label_pairs=[]), (0, 1, 2), {(2, True)}) == (None, ())


NUMBERED = {"background": 0, "structure 1": 1, "structure 2": 2}


def found(*, certain: bool) -> FoundPairs:
    return FoundPairs(pairs=(("structure 2", "structure 1"),), cases=5, least_overlap=0.62, certain=certain)


def test_certain_pairs_swap_labels() -> None:
    sides, (decision,) = choose_mirroring(description(labels=NUMBERED), (0, 2, 1), {(2, True)}, found(certain=True))
    assert sides == LabelPairs(pairs=(("structure 2", "structure 1"),), axes=(1,), swap=True)
    assert '"label_pairs": [["structure 2", "structure 1"]]' in decision.reason


@pytest.mark.parametrize(
    ("certain", "lateral"),
    [(False, {(2, True)}), (True, {(2, True), (2, False)}), (True, {(2, True), None}), (True, set())],
)
def test_other_pairs_are_proposed_and_mirroring_stays(certain: bool, lateral: set[Lateral | None]) -> None:
    sides, (decision,) = choose_mirroring(description(labels=NUMBERED), (0, 1, 2), lateral, found(certain=certain))
    assert sides is None
    assert decision.value == "proposed, not used"
    assert '"label_pairs": [["structure 2", "structure 1"]] to dataset.json' in decision.reason


@pytest.mark.parametrize("more", [{"label_pairs": []}, {"labels": {"background": 0, "liver": 1, "spleen": 2}}])
def test_a_declaration_and_other_labels_replace_what_was_found(more: dict[str, Any]) -> None:
    described = description(**({"labels": NUMBERED} | more))
    assert choose_mirroring(described, (0, 1, 2), {(2, True)}, found(certain=True)) == (None, ())


def test_names_come_before_what_was_found() -> None:
    sides, (decision,) = choose_mirroring(description(), (0, 1, 2), {(2, True)}, found(certain=True))
    assert sides is not None
    assert sides.pairs == (("hip_left", "hip_right"),)
    assert "found by name" in decision.reason
