"""Find the splits of a dataset, or make them; remember from what, so that outdated ones are made anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from segwright.core.errors import ConfigError, DatasetError, SegwrightError
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.data.crossval.balance import Labels, grouped_splits
from segwright.data.crossval.groups import Groups, groups_of
from segwright.data.crossval.splits import Split, are_default, cases_of, default_splits, load, save

logger = getLogger(__name__)

RECORD_JSON: Final = "segwright_splits.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """How folds are made, as a user asks for it; None: as the last time.

    Attributes:
        groups: which cases share a fold.
        stratify: whether labels are spread evenly over folds.
    """

    groups: Groups | None = None
    stratify: bool | None = None

    @property
    def are_given(self) -> bool:
        """Whether anything is asked for."""
        return self.groups is not None or self.stratify is not None


AS_BEFORE: Final = SplitOptions()


class SplitRecord(BaseModel):
    """From what the splits beside it were made.

    Attributes:
        groups: as given with a command; None: those of dataset.json, if any.
        stratify: whether labels were spread evenly.
        group_of_case: the group of each case; None without groups.
        splits: hash of the splits.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    groups: str | dict[str, str | int] | None
    stratify: bool
    group_of_case: dict[str, str] | None
    splits: str

    @classmethod
    def read(cls, splits_file: Path) -> SplitRecord | None:
        """Read the record beside a splits file; None if there is none, or a damaged one."""
        path = splits_file.with_name(RECORD_JSON)
        if not path.is_file():
            return None
        try:
            return parse_document(cls, path)
        except SegwrightError as error:
            logger.warning("%s; from what the splits were made is unknown", error)
            return None

    def save(self, splits_file: Path) -> None:
        """Write the record beside a splits file, atomically."""
        write_checked_json(splits_file.with_name(RECORD_JSON), self.model_dump(mode="json"))


class SplitMaker:
    """Finds or makes the splits of a dataset.

    Args:
        file: `splits_final.json` beside the preprocessed data.
        identifiers: all cases of the dataset.
        raw_file: `splits_final.json` of the raw dataset, used if it exists.
        options: how folds are made.
        declared: groups in dataset.json, used if a command names none.
        folder: where a relative path of a table in dataset.json starts.

    Attributes:
        groups: the group of each case; None without groups.
        knows_groups: whether a command or dataset.json says which cases share a fold, or that none do.

    Raises:
        SegwrightError: groups are given that cannot be read, or lack a case.
    """

    def __init__(
        self,
        file: Path,
        identifiers: Sequence[str],
        *,
        raw_file: Path | None = None,
        options: SplitOptions = AS_BEFORE,
        declared: Groups | None = None,
        folder: Path = Path(),
    ) -> None:
        self._file = file
        self._raw_file = raw_file
        self._identifiers = identifiers
        self._options = options
        self._record = SplitRecord.read(file)
        before = self._record
        self._groups = before.groups if options.groups is None and before is not None else options.groups
        self.knows_groups = self._groups is not None or declared is not None
        self._stratify = bool(before and before.stratify) if options.stratify is None else options.stratify
        self.groups = self._read_groups(declared, folder)

    def resolve(
        self, *, write: bool = True, in_use: bool = True, read_labels: Callable[[], Labels] | None = None
    ) -> list[Split]:
        """Return the splits in the file, else the raw dataset's own, else new ones; saved in the file.

        Args:
            write: save them; otherwise nothing on disk changes.
            in_use: whether a fold was trained with those in the file; if not, outdated ones of ours are replaced.
            read_labels: reads the labels of each case, if they are to be spread evenly; without it they are not, and
                cases may be in other folds than in those that are saved.

        Raises:
            DatasetError: both files exist and a fold of the raw one differs (nnU-Net behaviour 1.6), or there are too
                few cases.
            ConfigError: options are given, and the present splits are not to be replaced.
        """
        supplied = load(self._raw_file) if self._raw_file is not None and self._raw_file.is_file() else None
        if supplied is not None and self._options.are_given:
            raise ConfigError(
                f"{self._raw_file}: these folds are used as they are; leave out --groups and --stratify, or remove the "
                "file"
            )
        if self._file.is_file():
            present = load(self._file)
            if supplied is not None and not _are_same_cases(supplied, present):
                raise DatasetError(
                    f"{self._file}: folds differ from those of {self._raw_file}; delete the former to use the latter "
                    "(models trained on the old folds are then not comparable)"
                )
            if supplied is not None:
                return present
            if self._are_kept(present, in_use=in_use):
                if write and self.is_ours(present) and self._has_same_rules(present):
                    self._save_record(present)  # groups may be read from elsewhere now, and cases may be new
                return present
            if write:
                logger.info("%s: cases or groups changed; no fold was trained yet, so new folds are made", self._file)
        made = self._make(read_labels) if supplied is None else supplied
        if write:
            if supplied is None:
                self._save_record(made)  # first, so that splits of ours are known as such
            save(self._file, made)
        return made

    def is_ours(self, present: Sequence[Split]) -> bool:
        """Return whether splits in the file were made by a command, or by nnU-Net for some cases, and not edited."""
        return self._is_recorded(present) or are_default(present, sorted(cases_of(present)))

    def _read_groups(self, declared: Groups | None, folder: Path) -> dict[str, str] | None:
        """Return the group of each case; a table that a command named earlier is read only for new cases."""
        record = self._record
        if record is not None and record.groups is not None and self._options.groups is None:
            recorded = record.group_of_case or {}
            if recorded.keys() >= set(self._identifiers):
                return {case: recorded[case] for case in self._identifiers}
        return groups_of(declared if self._groups is None else self._groups, self._identifiers, folder=folder)

    def _are_kept(self, present: Sequence[Split], *, in_use: bool) -> bool:
        """Return whether splits are kept: they are up to date, in use, or were not made by us.

        Raises:
            ConfigError: they are kept, although options ask for others.
        """
        if not self.is_ours(present):
            if self._options.are_given:
                raise ConfigError(
                    f"{self._file}: holds folds that were edited or made by another program, and they are kept; delete "
                    "the file to get folds by --groups or --stratify"
                )
            return True
        has_same_rules = self._has_same_rules(present)
        if in_use and self._options.are_given and not has_same_rules:
            raise ConfigError(
                f"{self._file}: a fold was trained with these splits, so --groups and --stratify cannot change them; "
                "train in another work folder (--work), or delete the file and train every fold again"
            )
        return in_use or (has_same_rules and cases_of(present) == set(self._identifiers))

    def _has_same_rules(self, present: Sequence[Split]) -> bool:
        """Return whether splits of ours were made with the present groups and strata, cases aside."""
        if self._record is None or not self._is_recorded(present):
            return self._is_plain
        return self._record.stratify == self._stratify and _agree(self._record.group_of_case, self.groups)

    def _is_recorded(self, present: Sequence[Split]) -> bool:
        """Return whether the record is of these splits."""
        return self._record is not None and self._record.splits == _hash(present)

    @property
    def _is_plain(self) -> bool:
        """Whether folds are nnU-Net's."""
        return self.groups is None and not self._stratify

    def _make(self, read_labels: Callable[[], Labels] | None) -> list[Split]:
        if self.groups is None:
            plain = default_splits(self._identifiers)  # raises if there are too few cases
            if not self._stratify:
                return plain
        labels = read_labels() if self._stratify and read_labels is not None else None
        return grouped_splits(self.groups or {case: case for case in self._identifiers}, labels)

    def _save_record(self, splits: Sequence[Split]) -> None:
        """Record from what splits were made; nnU-Net's folds need no record unless they were asked for."""
        new = self._record_of(splits)
        if new != self._record and not (self._is_plain and self._groups is None and self._record is None):
            new.save(self._file)

    def _record_of(self, splits: Sequence[Split]) -> SplitRecord:
        groups = self._groups
        return SplitRecord(
            groups=groups if groups is None or isinstance(groups, str) else dict(groups),
            stratify=self._stratify,
            group_of_case=self.groups,
            splits=_hash(splits),
        )


def _hash(splits: Sequence[Split]) -> str:
    return content_hash([[split.train, split.val] for split in splits])


def _agree(one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> bool:
    """Return whether the cases that both have are in the same groups."""
    if one is None or other is None:
        return one is other
    return all(one[case] == other[case] for case in one.keys() & other.keys())


def _are_same_cases(supplied: Sequence[Split], present: Sequence[Split]) -> bool:
    """Return whether every supplied fold has the same cases as the present one of that number."""
    return len(supplied) <= len(present) and all(
        set(a.train) == set(b.train) and set(a.val) == set(b.val) for a, b in zip(supplied, present, strict=False)
    )
