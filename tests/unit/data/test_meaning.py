"""What of a dataset.json a network depends on."""

from __future__ import annotations

from typing import Any

import pytest

from segwright.data.description import DatasetDescription

PLAIN: dict[str, Any] = {
    "channel_names": {"0": "MRI", "1": "CT"},
    "labels": {"background": 0, "shell": 1, "core": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


def meaning(**changes: Any) -> dict[str, Any]:
    return DatasetDescription.model_validate({**PLAIN, **changes}).meaning()


@pytest.mark.parametrize(
    "changes",
    [
        {"numTraining": 9},
        {"file_ending": ".nrrd"},
        {"description": "more text"},
        {"labels": {"core": 2, "background": 0, "shell": 1}},
        {"labels": {"background": "0", "shell": "1", "core": "2"}},
    ],
)
def test_what_no_network_depends_on_changes_nothing(changes: dict[str, Any]) -> None:
    assert meaning(**changes) == meaning()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": 0, "core": 1, "shell": 2}},
        {"labels": {"background": 0, "shell": 1, "kernel": 2}},
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]},
        {"channel_names": {"0": "CT", "1": "MRI"}},
    ],
)
def test_other_labels_or_channels_are_another_task(changes: dict[str, Any]) -> None:
    assert meaning(**changes) != meaning()


def test_the_order_of_regions_counts() -> None:
    order = {"regions_class_order": [1, 2]}
    one = meaning(labels={"background": 0, "whole": [1, 2], "core": 2}, **order)
    assert one != meaning(labels={"background": 0, "core": 2, "whole": [1, 2]}, **order)
