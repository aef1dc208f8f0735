"""What each stage of a dataset was made from, so that a second run knows at a glance that nothing is to be done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segwright.core.documents import content_hash, read_json, write_json
from segwright.core.errors import SegwrightError

STATE_JSON = "segwright_state.json"
SCHEMA_VERSION = 1


def listing_digest(paths: Iterable[Path]) -> str:
    """Return a hash of names, sizes and modification times; no file is opened, a missing one counts as such.

    A change that keeps size and time goes unnoticed here; the store's own content hashes are the thorough check.
    """
    return content_hash([_state_of(path) for path in paths])


def folder_digest(folder: Path) -> str:
    """Return the `listing_digest` of all files of a folder, hidden ones left out."""
    if not folder.is_dir():
        return "none"
    return listing_digest(sorted(path for path in folder.iterdir() if not path.name.startswith(".")))


class Journal:
    """The document beside the preprocessed data that says from what each stage was made.

    A stage is recorded after its output is written, so that an interrupted stage is never taken for done.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE_JSON

    def holds(self, stage: str, made_from: object) -> bool:
        """Whether `stage` was last made from exactly this."""
        return self._stages().get(stage) == content_hash(made_from)

    def knows(self, stage: str) -> bool:
        """Whether `stage` was ever recorded."""
        return stage in self._stages()

    def record(self, stage: str, made_from: object) -> None:
        """Note from what `stage` was made just now."""
        stages = {**self._stages(), stage: content_hash(made_from)}
        write_json(self._path, {"schema_version": SCHEMA_VERSION, "stages": dict(sorted(stages.items()))})

    def _stages(self) -> dict[str, Any]:
        # A damaged document only means that stages are looked at again.
        try:
            document = read_json(self._path)
        except SegwrightError:
            return {}
        stages = document.get("stages") if isinstance(document, dict) else None
        return stages if isinstance(stages, dict) else {}


def _state_of(path: Path) -> list[object]:
    try:
        status = path.stat()
    except OSError:
        return [str(path), None]
    return [str(path), status.st_size, status.st_mtime_ns]
