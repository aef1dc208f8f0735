"""Record what each stage of a dataset was made from, so that a second run skips stages that are up to date."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from segwright.core.errors import DatasetError, SegwrightError
from segwright.core.files.hashing import content_hash, file_hash
from segwright.core.files.json_documents import read_checked_json, write_checked_json
from segwright.data.preprocessed.provenance import SourceFile

STATE_JSON = "segwright_state.json"
SCHEMA_VERSION = 1

_STAGES, _RAW = "stages", "raw"


class RawIdentity(BaseModel):
    """Identifies a raw dataset among others of the same name.

    Attributes:
        folder: its path, links resolved.
        state: digest of paths, sizes and times of its files.
        images: hash of the images of some cases, to recognise a copied or corrected dataset.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    folder: str
    state: str
    images: dict[str, str]


def listing_digest(paths: Iterable[Path]) -> str:
    """Return a hash of names, sizes and modification times; files are not opened; a missing one counts as missing.

    A change that keeps size and time is not detected here, but by the content hashes of the store.
    """
    return content_hash([_state_of(path) for path in paths])


def folder_digest(folder: Path) -> str:
    """Return the `listing_digest` of all files of a folder that are not hidden."""
    if not folder.is_dir():
        return "none"
    return listing_digest(sorted(path for path in folder.iterdir() if not path.name.startswith(".")))


def hash_files(paths: Sequence[Path], known: Sequence[SourceFile]) -> list[SourceFile]:
    """Return name, size, time and hash of each file; one whose name, size and time are in `known` is not read again.

    Raises:
        DatasetError: a file is missing, not readable or not a regular file.
    """
    recorded = {(file.name, file.size, file.mtime_ns): file for file in known}
    result = []
    for path in paths:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DatasetError(f"{path}: is not a regular file; replace it with one")
            key = (path.name, status.st_size, status.st_mtime_ns)
            found = recorded.get(key)
            result.append(found or SourceFile(name=key[0], size=key[1], mtime_ns=key[2], sha256=file_hash(path)))
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    return result


class StageCache:
    """Records what each stage was made from, in a document beside the preprocessed data.

    A stage is recorded after its output is written, so that an interrupted stage never counts as done.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE_JSON

    def is_current(self, stage: str, made_from: object) -> bool:
        """Whether `stage` was last made from exactly this."""
        return self._stages().get(stage) == content_hash(made_from)

    def has_stage(self, stage: str) -> bool:
        """Whether `stage` was ever recorded."""
        return stage in self._stages()

    @property
    def is_begun(self) -> bool:
        """Whether any stage was recorded."""
        return bool(self._stages())

    def record(self, stage: str, made_from: object) -> None:
        """Record what `stage` was made from."""
        stages = {**self._stages(), stage: content_hash(made_from)}
        self._write({_STAGES: dict(sorted(stages.items()))})

    @property
    def raw(self) -> RawIdentity | None:
        """The raw dataset that the folder belongs to; None if not recorded."""
        try:
            return RawIdentity.model_validate(self._document().get(_RAW))
        except ValidationError:
            return None

    def record_raw(self, raw: RawIdentity) -> None:
        """Record which raw dataset the folder belongs to."""
        self._write({_RAW: raw.model_dump(mode="json")})

    def _stages(self) -> dict[str, Any]:
        stages = self._document().get(_STAGES)
        return stages if isinstance(stages, dict) else {}

    def _document(self) -> dict[str, Any]:
        # A damaged document only means that stages are checked again.
        try:
            document = read_checked_json(self._path)
        except SegwrightError:
            return {}
        return document if isinstance(document, dict) else {}

    def _write(self, parts: dict[str, Any]) -> None:
        kept = {key: value for key, value in self._document().items() if key in (_STAGES, _RAW)}
        write_checked_json(self._path, {"schema_version": SCHEMA_VERSION, **kept, **parts})


def _state_of(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError:
        return [str(path), None]
    return [str(path), status.st_size, status.st_mtime_ns]
