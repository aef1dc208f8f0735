"""Reference label maps: those that a dataset.json lists, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from segwright.core.errors import SegwrightError
from segwright.data.dataset import scan
from segwright.data.description import DatasetDescription, load_description
from segwright.data.labels import Labels
from segwright.workspace import DATASET_JSON, PLANS_JSON


def reference_labels(description: DatasetDescription, truth: Path) -> Labels:
    """Return the labels to score, with the `label_map` of the dataset that the references belong to, if to any.

    Args:
        description: of the labels.
        truth: raw dataset, or its folder of label maps.
    """
    labels = Labels.from_description(description)
    for folder in (truth, truth.absolute().parent):
        if (folder / DATASET_JSON).is_file() and not (folder / PLANS_JSON).exists():
            try:
                own = load_description(folder / DATASET_JSON)
            except SegwrightError:  # not an error here: another dataset.json describes the labels
                return labels
            return replace(labels, label_map=own.label_map)
    return labels


def listed_references(truth: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the label map of each case by its name; empty without file lists.

    Args:
        truth: raw dataset whose dataset.json lists its files, or its folder of label maps. File lists in model and
            prediction folders are not used, since these folders may come from somebody else.
        environment: variables that paths in the lists may contain.
    """
    for folder in (truth, truth.absolute().parent):
        if not (folder / DATASET_JSON).is_file() or (folder / PLANS_JSON).exists():
            continue
        try:
            description = load_description(folder / DATASET_JSON)
        except SegwrightError:  # not an error here: another dataset.json may describe the labels
            return {}
        if description.dataset is None:
            return {}
        cases = scan(folder, environment=environment).cases
        listed = {case.identifier: case.label for case in cases if case.label is not None}
        if folder != truth:
            listed = {name: file for name, file in listed.items() if file.parent.resolve() == truth.resolve()}
        return listed
    return {}
