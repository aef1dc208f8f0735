"""What a plan says about left and right."""

from __future__ import annotations

from typing import Any

import pytest

from segwright.data.description import DatasetDescription
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
