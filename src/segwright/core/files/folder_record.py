"""Record where a folder lies and what one of its files held, to find and recognise it later."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from segwright.core.errors import SegwrightError
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import parse_document, write_checked_json

SCHEMA_VERSION = 1


class FolderRecord(BaseModel):
    """Where a folder lies.

    Attributes:
        folder: absolute path, links kept.
        sha256: of the file by which the folder is recognised.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    folder: Path
    sha256: str

    @classmethod
    def of(cls, folder: Path, name: str) -> FolderRecord:
        """Return the record of a folder that is recognised by its file `name`."""
        return cls(folder=Path(os.path.abspath(folder)), sha256=file_hash(folder / name))

    @classmethod
    def load(cls, path: Path) -> FolderRecord | None:
        """Read a record; None if there is none, or it is damaged."""
        try:
            return parse_document(cls, path)
        except SegwrightError:
            return None

    def save(self, path: Path) -> None:
        """Write the record, unless it is there already."""
        if FolderRecord.load(path) != self:
            write_checked_json(path, self.model_dump(mode="json"))

    def is_current(self, name: str) -> bool:
        """Whether the file `name` of the folder holds what it held when the record was made."""
        return file_hash(self.folder / name) == self.sha256
