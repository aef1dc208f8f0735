"""Cross-validation splits: nnU-Net's default folds, their file, checks, the cases of one fold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from numbers import Integral
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from segwright.core.errors import DatasetError
from segwright.core.files.json_documents import describe_validation, read_json, write_json
from segwright.core.files.names import FileName

logger = getLogger(__name__)

NUM_FOLDS = 5
SPLIT_SEED = 12345
"""Seed and number of folds of nnU-Net 2.8.1 (nnU-Net behaviour 1.6)."""

_SHOWN_IDENTIFIERS = 5

_ONE_OF_SEVERAL = re.compile(
    r"(.*\d.*?)[_-]?(?:ses|session|frame|visit|timepoint|time|tp|phase|scan|run)[_-]?\d+", re.IGNORECASE
)
"""Name of one of several cases of a subject; a subject has a number."""
_MAX_CASES_OF_SUBJECT = 8
"""What more cases, or more than half of all, share in their names is rather a dataset or a site than a subject."""


@dataclass(frozen=True, slots=True)
class Split:
    """The training and validation cases of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


class _SplitDocument(BaseModel):
    model_config = ConfigDict(extra="allow")

    train: list[FileName]
    val: list[FileName]


def default_splits(identifiers: Sequence[str]) -> list[Split]:
    """Return nnU-Net's five folds over the sorted identifiers (nnU-Net behaviour 1.6).

    Raises:
        DatasetError: fewer than five cases.
    """
    ordered = sorted(identifiers)
    if len(ordered) < NUM_FOLDS:
        raise DatasetError(
            f"{NUM_FOLDS}-fold cross-validation needs at least {NUM_FOLDS} cases, found {len(ordered)}; "
            "add cases, train on all of them (fold all), or write your own splits_final.json"
        )
    shuffled = np.arange(len(ordered))
    np.random.RandomState(SPLIT_SEED).shuffle(shuffled)
    splits = []
    for chunk in np.array_split(shuffled, NUM_FOLDS):
        held_out = set(chunk.tolist())
        splits.append(
            Split(
                train=tuple(name for index, name in enumerate(ordered) if index not in held_out),
                val=tuple(name for index, name in enumerate(ordered) if index in held_out),
            )
        )
    return splits


def load(path: Path) -> list[Split]:
    """Read a `splits_final.json`.

    Raises:
        SegwrightError: not readable, not JSON, or not a list of {"train": [...], "val": [...]}.
    """
    document = read_json(path)
    try:
        folds: list[_SplitDocument] = TypeAdapter(list[_SplitDocument]).validate_python(document)
    except ValidationError as error:
        raise DatasetError(
            f'{path}: {describe_validation(error)}; expected a list of {{"train": [ids], "val": [ids]}}'
        ) from error
    if not folds:
        raise DatasetError(f"{path}: holds no fold; delete the file to get the default splits")
    return [Split(train=tuple(fold.train), val=tuple(fold.val)) for fold in folds]


def save(path: Path, splits: Sequence[Split]) -> None:
    """Write `splits_final.json` as nnU-Net reads it, atomically."""
    write_json(path, [{"train": list(split.train), "val": list(split.val)} for split in splits], indent=4)


def select(
    splits: Sequence[Split],
    identifiers: Sequence[str],
    fold: int | Literal["all"],
    *,
    groups: Mapping[str, str] | None = None,
) -> Split:
    """Return the cases of one fold; `"all"` trains and validates on every case.

    Args:
        splits: of the dataset.
        identifiers: all its cases.
        fold: its number, or all.
        groups: the group of each case; a warning names groups on both sides. Without, names of cases are compared.

    Raises:
        DatasetError: no such fold, an empty training or validation set, or a case that is not among `identifiers`.
    """
    if fold == "all":
        everything = tuple(sorted(identifiers))
        return Split(train=everything, val=everything)
    if isinstance(fold, bool) or not isinstance(fold, Integral):
        raise DatasetError(f"fold {fold!r}: expected a number such as 0, or 'all'")
    if not 0 <= fold < len(splits):
        raise DatasetError(f"fold {fold} does not exist; choose from 0 to {len(splits) - 1}, or all")
    split = splits[fold]
    if not split.train or not split.val:
        raise DatasetError(f"fold {fold}: needs at least one training and one validation case; edit splits_final.json")
    unknown = unknown_identifiers(split, identifiers)
    if unknown:
        raise DatasetError(
            f"fold {fold}: the dataset has no case {shorten(unknown)}, which splits_final.json names; put back the "
            "files, or delete splits_final.json to get new folds (models of the old ones are then not comparable)"
        )
    shared = overlap(split)
    if shared:
        logger.warning("fold %d: %s are in both train and val; its scores will be too good", fold, shorten(shared))
    if groups is not None and (crossing := shared_groups(split, groups)):
        logger.warning(
            "fold %d: cases of group %s are in both train and val; its scores will be too good; delete "
            "splits_final.json to get folds that keep each group together, and train them again",
            *(fold, shorten(crossing)),
        )
    elif groups is None and (subjects := shared_subjects(split)):
        logger.warning(
            "fold %d: by their names, cases of %s are in both train and val; its scores will be too good; "
            "'segwright plan --groups', or a splits_final.json in the dataset's folder, keeps each subject together",
            *(fold, shorten(subjects)),
        )
    return split


def are_default(splits: Sequence[Split], identifiers: Sequence[str]) -> bool:
    """Whether splits are the default ones of these cases."""
    return len(identifiers) >= NUM_FOLDS and list(splits) == default_splits(identifiers)


def left_out(splits: Sequence[Split], identifiers: Sequence[str]) -> list[str]:
    """Return the cases that no fold trains on or validates with."""
    return sorted(set(identifiers) - cases_of(splits))


def unknown_identifiers(split: Split, identifiers: Sequence[str]) -> list[str]:
    """Return the cases of a fold that the dataset does not have."""
    return sorted({*split.train, *split.val} - set(identifiers))


def overlap(split: Split) -> list[str]:
    """Return the cases that are in both sets."""
    return sorted(set(split.train) & set(split.val))


def shared_groups(split: Split, groups: Mapping[str, str]) -> list[str]:
    """Return the groups with some cases in train and others in val."""
    train, val = ({groups[name] for name in side} for side in (split.train, split.val))
    return sorted(train & val)


def shared_subjects(split: Split) -> list[str]:
    """Return the subjects with some cases in train and others in val, judged by names such as `patient002_frame01`."""
    train, val = (set(map(_subject, side)) for side in (split.train, split.val))
    return [subject for subject in several_scans([*split.train, *split.val]) if subject in train & val]


def several_scans(identifiers: Sequence[str]) -> list[str]:
    """Return the subjects with several cases, judged by names such as `patient002_frame01`; sorted."""
    counts = Counter(subject for name in identifiers if (subject := _subject(name)))
    most = min(_MAX_CASES_OF_SUBJECT, len(identifiers) // 2)
    return sorted(subject for subject, count in counts.items() if 1 < count <= most)


def subject_pattern(identifiers: Sequence[str]) -> str | None:
    r"""Return a regular expression for the subject in each of the names; None if they have several forms.

    >>> subject_pattern(["patient001_frame01", "patient001_frame12", "patient002_frame01"])
    'patient\\d+'
    """
    forms = {re.sub(r"\d+", r"\\d+", re.escape(_subject(name) or name).replace(r"\-", "-")) for name in identifiers}
    return min(forms) if len(forms) == 1 else None


def shorten(identifiers: Sequence[str]) -> str:
    """Return case names as text, at most the first few."""
    shown = ", ".join(identifiers[:_SHOWN_IDENTIFIERS])
    more = len(identifiers) - _SHOWN_IDENTIFIERS
    return f"{shown} and {more} more" if more > 0 else shown


def cases_of(splits: Sequence[Split]) -> set[str]:
    """Return the cases that some fold trains on or validates with."""
    return {name for split in splits for name in (*split.train, *split.val)}


def _subject(name: str) -> str | None:
    """Return the subject of a case whose name is that of one of several; else None."""
    match = _ONE_OF_SEVERAL.fullmatch(name)
    return None if match is None else match[1]
