"""Label maps that a dataset's own file lists give to its cases, for verbs that get a folder of true label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from segwright.core.errors import SegwrightError
from segwright.data.dataset import load_description, scan
from segwright.workspace import DATASET_JSON, PLANS_JSON


def listed_references(truth: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the label map of each case, by the name its prediction has; empty where no file lists tell.

    Args:
        truth: raw dataset whose dataset.json lists its files, or the folder in one that holds its label maps. The
            copies of dataset.json in model and prediction folders list nothing here: they may come from elsewhere.
        environment: variables that the lists may name.
    """
    for folder in (truth, truth.absolute().parent):
        if not (folder / DATASET_JSON).is_file() or (folder / PLANS_JSON).exists():
            continue
        try:
            description = load_description(folder / DATASET_JSON)
        except SegwrightError:  # it is beside the point: another one may name the labels
            return {}
        if description.dataset is None:
            return {}
        cases = scan(folder, environment=environment).cases
        listed = {f"{case.identifier}{description.file_ending}": case.label for case in cases if case.label is not None}
        if folder != truth:
            listed = {name: file for name, file in listed.items() if file.parent.resolve() == truth.resolve()}
        return listed
    return {}
