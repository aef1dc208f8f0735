"""Reference label maps of datasets that list their files in dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from segwright.core.errors import SegwrightError
from segwright.data.dataset import scan
from segwright.data.description import load_description
from segwright.workspace import DATASET_JSON, PLANS_JSON


def listed_references(truth: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the label map of each case by the file name of its prediction; empty without file lists.

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
        listed = {f"{case.identifier}{description.file_ending}": case.label for case in cases if case.label is not None}
        if folder != truth:
            listed = {name: file for name, file in listed.items() if file.parent.resolve() == truth.resolve()}
        return listed
    return {}
