"""Read and write `training_data.json` of a fold: its cases, and hashes of the files it was trained with.

Folds of earlier versions have none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import DatasetError, SegwrightError
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.data.crossval.splits import Split
from segwright.data.preprocessed.provenance import SourceFile
from segwright.data.stage_cache import hash_files

logger = getLogger(__name__)

TRAINING_DATA_JSON: Final = "training_data.json"

Entry = tuple[str, int, int, str]
"""Path (relative to the dataset's folder if inside it), size, modification time in ns, SHA-256."""


class TrainingData(BaseModel):
    """Cases and files of a fold; the files of a case are its images, then its label.

    Attributes:
        dataset: folder of the raw dataset.
        raw_digest: of names, sizes and times of the raw files when they last matched this document.
        train: training cases.
        val: held-out cases.
        cases: files of each case.
        scored: SHA-256 of the labels that were last scored with, where they differ from those in `cases`.
        label_map: from values in label files to labels, as it was trained with.
        scored_label_map: as it was last scored with, where it differs.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    schema_version: Literal[1] = 1
    dataset: str
    raw_digest: str = Field(alias="raw_state")
    train: tuple[str, ...]
    val: tuple[str, ...]
    cases: dict[str, tuple[Entry, ...]]
    scored: dict[str, str] = Field(default_factory=dict)
    label_map: dict[int, int] = Field(default_factory=dict)
    scored_label_map: dict[int, int] | None = None

    @classmethod
    def read(cls, fold_folder: Path) -> TrainingData | None:
        """Read the document of a fold; None if it is missing or damaged."""
        file = fold_folder / TRAINING_DATA_JSON
        if not file.is_file():
            return None
        try:
            return parse_document(cls, file)
        except SegwrightError as error:
            logger.warning("%s; changes since this fold was trained are unknown", error)
            return None

    def save(self, fold_folder: Path) -> None:
        """Write the document, atomically."""
        write_checked_json(fold_folder / TRAINING_DATA_JSON, self.model_dump(mode="json", by_alias=True))

    @property
    def split(self) -> Split:
        """The cases of the fold."""
        return Split(train=self.train, val=self.val)

    def files(self) -> dict[str, list[Path]]:
        """Return where the files of each case were."""
        return {case: [Path(self.dataset, entry[0]) for entry in entries] for case, entries in self.cases.items()}

    def recorded(self, case: str) -> list[SourceFile]:
        """Return names, sizes, times and hashes of a case's files."""
        return [
            SourceFile(name=Path(path).name, size=size, mtime_ns=time, sha256=content)
            for path, size, time, content in self.cases.get(case, ())
        ]

    def scored_label(self, case: str) -> tuple[str, dict[int, int]]:
        """Return the hash of the label file that a case was scored with, and what its values meant."""
        label_map = self.label_map if self.scored_label_map is None else self.scored_label_map
        return self.scored.get(case) or self.cases[case][-1][3], label_map


@dataclass(frozen=True, slots=True, kw_only=True)
class DataChanges:
    """How the files of cases differ from what they were when a fold was trained; cases sorted.

    Attributes:
        labels: cases whose label file, or what its values mean, changed.
        images: cases of which an image changed.
        gone: cases of which a file is missing.
        now: current files of the other cases.
    """

    labels: tuple[str, ...]
    images: tuple[str, ...]
    gone: tuple[str, ...]
    now: Mapping[str, tuple[SourceFile, ...]]


def entries(folder: Path, paths: Sequence[Path], files: Sequence[SourceFile]) -> tuple[Entry, ...]:
    """Return a case's files as entries of the document."""
    return tuple(
        (_relative(path, folder), file.size, file.mtime_ns, file.sha256)
        for path, file in zip(paths, files, strict=True)
    )


def changes(
    data: TrainingData,
    files: Mapping[str, Sequence[Path]],
    known: Callable[[str], Sequence[SourceFile]] = lambda case: (),
    *,
    label_map: Mapping[int, int] | None = None,
) -> DataChanges:
    """Compare the files of cases with those a fold was trained with; files of unchanged size and time are not read.

    Args:
        data: of the fold.
        files: of each case that exists now, images then label.
        known: gives further files of a case whose hashes are known.
        label_map: from values in label files to labels now; None: as it was.
    """
    labels, images, gone = [], [], []
    now: dict[str, tuple[SourceFile, ...]] = {}
    for case in sorted(data.cases):
        before = data.recorded(case)
        try:
            found = hash_files(files.get(case, ()), [*before, *known(case)])
        except DatasetError:
            gone.append(case)
            continue
        if len(found) != len(before):
            gone.append(case)
            continue
        now[case] = tuple(found)
        if found[-1].sha256 != before[-1].sha256 or label_map not in (None, data.label_map):
            labels.append(case)
        if [file.sha256 for file in found[:-1]] != [file.sha256 for file in before[:-1]]:
            images.append(case)
    return DataChanges(labels=tuple(labels), images=tuple(images), gone=tuple(gone), now=now)


def _relative(path: Path, folder: Path) -> str:
    absolute, base = os.path.abspath(path), os.path.abspath(folder)
    return Path(absolute).relative_to(base).as_posix() if absolute.startswith(base + os.sep) else absolute
