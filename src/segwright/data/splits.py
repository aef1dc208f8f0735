"""Cross-validation splits: make nnU-Net's default folds, read, write, check and select them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
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


def resolve(
    path: Path, identifiers: Sequence[str], *, raw_file: Path | None = None, write: bool = True, in_use: bool = True
) -> list[Split]:
    """Return the splits of a dataset: those at `path`, else the raw dataset's own, else the default; saved at `path`.

    Args:
        path: `splits_final.json` beside the preprocessed data.
        identifiers: all cases of the dataset.
        raw_file: `splits_final.json` in the raw dataset, used if it exists.
        write: save them; otherwise nothing on disk changes.
        in_use: whether a fold was trained with those at `path`; if not, outdated default splits are replaced.

    Raises:
        DatasetError: both files exist and a fold of the raw one differs (nnU-Net behaviour 1.6).
    """
    supplied = load(raw_file) if raw_file is not None and raw_file.is_file() else None
    if path.is_file():
        splits = load(path)
        if supplied is not None and not _are_same_cases(supplied, splits):
            raise DatasetError(
                f"{path}: folds differ from those of {raw_file}; delete the former to use the latter "
                "(models trained on the old folds are then not comparable)"
            )
        if in_use or supplied is not None or not _is_default_of_other_cases(splits, identifiers):
            return splits
        if write:
            logger.info("%s: the dataset has other cases now; no fold was trained yet, so new folds are made", path)
    splits = default_splits(identifiers) if supplied is None else supplied
    if write:
        save(path, splits)
    return splits


def select(splits: Sequence[Split], identifiers: Sequence[str], fold: int | Literal["all"]) -> Split:
    """Return the cases of one fold; `"all"` trains and validates on every case.

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
    if subjects := shared_subjects(split):
        logger.warning(
            "fold %d: by their names, cases of %s are in both train and val; its scores will be too good; write a "
            "splits_final.json that keeps each subject together into the dataset's folder",
            *(fold, shorten(subjects)),
        )
    return split


def are_default(splits: Sequence[Split], identifiers: Sequence[str]) -> bool:
    """Whether splits are the default ones of these cases."""
    return len(identifiers) >= NUM_FOLDS and list(splits) == default_splits(identifiers)


def left_out(splits: Sequence[Split], identifiers: Sequence[str]) -> list[str]:
    """Return the cases that no fold trains on or validates with."""
    return sorted(set(identifiers) - _cases(splits))


def unknown_identifiers(split: Split, identifiers: Sequence[str]) -> list[str]:
    """Return the cases of a fold that the dataset does not have."""
    return sorted({*split.train, *split.val} - set(identifiers))


def overlap(split: Split) -> list[str]:
    """Return the cases that are in both sets."""
    return sorted(set(split.train) & set(split.val))


def shared_subjects(split: Split) -> list[str]:
    """Return the subjects with some cases in train and others in val, judged by names such as `patient002_frame01`."""
    train, val = (
        Counter(match[1] for name in side if (match := _ONE_OF_SEVERAL.fullmatch(name)))
        for side in (split.train, split.val)
    )
    most = min(_MAX_CASES_OF_SUBJECT, (len(split.train) + len(split.val)) // 2)
    return sorted(subject for subject in train & val if train[subject] + val[subject] <= most)


def shorten(identifiers: Sequence[str]) -> str:
    """Return case names as text, at most the first few."""
    shown = ", ".join(identifiers[:_SHOWN_IDENTIFIERS])
    more = len(identifiers) - _SHOWN_IDENTIFIERS
    return f"{shown} and {more} more" if more > 0 else shown


def _are_same_cases(supplied: Sequence[Split], present: Sequence[Split]) -> bool:
    """Return whether every supplied fold has the same cases as the present one of that number."""
    return len(supplied) <= len(present) and all(
        set(a.train) == set(b.train) and set(a.val) == set(b.val) for a, b in zip(supplied, present, strict=False)
    )


def _is_default_of_other_cases(splits: Sequence[Split], identifiers: Sequence[str]) -> bool:
    """Whether splits are the default ones of other cases than these."""
    known = _cases(splits)
    return known != set(identifiers) and len(known) >= NUM_FOLDS and list(splits) == default_splits(sorted(known))


def _cases(splits: Sequence[Split]) -> set[str]:
    return {name for split in splits for name in (*split.train, *split.val)}
