"""Read and validate the `dataset.json` of a raw dataset (nnU-Net behaviour 1.4)."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from segwright.core.errors import DatasetError, Problem, ProblemReport
from segwright.core.files.json_documents import read_json
from segwright.core.files.names import require_ending
from segwright.data.labels import ClassKey, label_map_problems, label_problems, parse_label_map

DATASET_JSON = "dataset.json"

_KEY_REMEDIES = {
    "channel_names": 'give an object of index -> name, such as {"0": "CT"}',
    "labels": 'give an object of name -> value, such as {"background": 0, "liver": 1}',
    "numTraining": "give the number of training cases",
    "num_training": "give the number of training cases",
    "file_ending": 'give the ending of images and labels, such as ".nii.gz"',
    "label_map": 'give {value in files: label}, such as {"255": 1}',
    "groups": 'give {case: group}, "FILE.csv:COLUMN" or "regex:PATTERN"',
    "dataset": 'give {case: {"images": [files], "label": file}}',
}


def _refuse_text_value(value: object) -> object:
    if isinstance(value, str) and not value.lstrip("-").isdecimal():
        raise ValueError(f"is the text '{value}', expected a whole number or a list of them (name -> value)")
    return value


class CaseFiles(BaseModel):
    """One entry of the explicit file lists of a dataset.json (nnU-Net behaviour 1.4)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    images: tuple[str, ...] = Field(min_length=1)
    label: str


class DatasetDescription(BaseModel):
    """A `dataset.json` (nnU-Net behaviour 1.4); unknown keys and the order of labels and channels are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    channel_names: dict[str, str] = Field(validation_alias=AliasChoices("channel_names", "modality"), min_length=1)
    labels: dict[str, Annotated[ClassKey, BeforeValidator(_refuse_text_value)]]
    regions_class_order: tuple[int, ...] | None = None
    num_training: int = Field(alias="numTraining", ge=0)
    file_ending: str
    overwrite_image_reader_writer: str | None = None
    dataset: dict[str, CaseFiles] | None = None
    label_map: Annotated[dict[int, int], BeforeValidator(parse_label_map)] = Field(default_factory=dict)
    """Label of each other value that label files may hold, a key that nnU-Net does not have."""
    groups: str | dict[str, str | int] | None = None
    """Which cases share a fold, a key that nnU-Net does not have: the group of each, or see `crossval.groups`."""
    label_pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of left and right label names, a key that nnU-Net does not have; default: `laterality.find_pairs`."""

    _document: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_document(cls, data: Any, handler: ModelWrapValidatorHandler[DatasetDescription]) -> DatasetDescription:
        description = handler(data)
        if isinstance(data, dict):
            description._document = deepcopy(data)
        return description

    @field_validator("file_ending")
    @classmethod
    def _starts_with_dot(cls, ending: str) -> str:
        return require_ending(ending)

    @model_validator(mode="after")
    def _pairs_are_labels(self) -> DatasetDescription:
        paired = [name for pair in self.label_pairs or () for name in pair]
        if unknown := sorted(set(paired) - set(self.labels)):
            raise ValueError(f"label_pairs names {unknown}, expected names of labels: {list(self.labels)}")
        if twice := sorted({name for name in paired if paired.count(name) > 1}):
            raise ValueError(f"label_pairs names {twice} twice, expected every label in one pair at most")
        return self

    def meaning(self) -> dict[str, Any]:
        """Return the channels and labels that define the task, as JSON; equal for equal tasks."""
        labels = [[name, list(key) if isinstance(key, tuple) else key] for name, key in self.labels.items()]
        if self.regions_class_order is None:  # then the heads are ordered by label value
            labels.sort(key=lambda item: (str(item[1]), str(item[0])))
        order = self.regions_class_order
        return {
            "channels": list(self.channel_names.values()),
            "labels": labels,
            "regions_class_order": None if order is None else list(order),
        }

    def file_lists(self) -> dict[str, tuple[tuple[str, ...], str]]:
        """Return the images and the label map that the document lists for each case; empty without lists."""
        return {name: (files.images, files.label) for name, files in (self.dataset or {}).items()}

    def raw(self) -> dict[str, Any]:
        """Return the JSON document as it was read, for copies beside plans and models."""
        if self._document is not None:
            return deepcopy(self._document)
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {key: value for key, value in document.items() if key != "label_map" or value}


def load_description(path: Path) -> DatasetDescription:
    """Read a `dataset.json`.

    Raises:
        SegwrightError: the file is missing or not JSON.
        ProblemReport: keys are missing or invalid, or the labels break a rule; every finding is listed.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; a raw dataset has a {DATASET_JSON} beside its image folders")
    return parse_description(read_json(path), path)


def parse_description(document: Any, path: Path) -> DatasetDescription:
    """Return the description in a JSON document.

    Args:
        document: content of a dataset.json.
        path: of the file, for messages.

    Raises:
        SegwrightError: it is no object.
        ProblemReport: as of `load_description`.
    """
    if not isinstance(document, dict):
        raise DatasetError(
            f"{path}: holds a {type(document).__name__}, expected an object with channel_names and labels"
        )
    try:
        description = DatasetDescription.model_validate(document)
    except ValidationError as error:
        raise ProblemReport(_validation_problems(path, error)) from error
    found = label_problems(description.labels, description.regions_class_order)
    problems = [Problem(where=f"{path}, labels", what=what) for what in found]
    found = label_map_problems(description.label_map, description.labels)
    problems += [Problem(where=f"{path}, label_map", what=what) for what in found]
    if problems:
        raise ProblemReport(problems)
    return description


def _validation_problems(path: Path, error: ValidationError) -> list[Problem]:
    problems: list[Problem] = []
    for finding in error.errors(include_url=False, include_context=False, include_input=False):
        keys = [str(part) for part in finding["loc"]]
        # pydantic names the branches of a union (int or list), too; those are not keys of the document.
        shown = [key for key in keys if not re.fullmatch(r"int|str|tuple\[.*|dict\[.*|function-.*", key)]
        what = "is missing" if finding["type"] == "missing" else finding["msg"].removeprefix("Value error, ")
        problem = Problem(
            where=f"{path}, {'.'.join(shown) or 'document'}",
            what=what,
            remedy=_KEY_REMEDIES.get(shown[0], "") if shown else "",
        )
        is_other_branch = shown != keys and any(each.where == problem.where for each in problems)
        if problem not in problems and not is_other_branch:
            problems.append(problem)
    return problems
