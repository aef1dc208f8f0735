"""The files of prediction logs: their names, what they say, and whether files changed since."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.files.hashing import content_hash, file_crc
from segwright.core.files.json_documents import read_checked_json
from segwright.data.cases import Case

PREDICTION_JSON: Final = "prediction.json"

_REMEDY = "remove the file and its label maps, or predict them again with --overwrite"
_LOG_NAME = re.compile(r"prediction(_part_\d+_of_\d+)?\.json")

_SIZE_AND_TIME: Final = 2
"""Length of the first part of a file's state, which is known without reading the file; a checksum may follow."""

Entries = dict[str, dict[str, Any]]
"""What a log says about each case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A log as it was read.

    Attributes:
        model: identity of the model; see `Predictor.identity`.
        devices: of the runs.
        cases: what it says about each case.
    """

    model: Any
    devices: Sequence[str]
    cases: Entries


def log_name(part: int, parts: int) -> str:
    """Return the name of the log; every part has its own.

    >>> log_name(0, 1), log_name(1, 2)
    ('prediction.json', 'prediction_part_1_of_2.json')
    """
    return PREDICTION_JSON if parts == 1 else f"prediction_part_{part}_of_{parts}.json"


def log_files(folder: Path) -> list[Path]:
    """Return the logs in a folder: of parts, and of runs without parts."""
    return [file for file in sorted(folder.glob("prediction*.json")) if _LOG_NAME.fullmatch(file.name)]


def read_log(file: Path) -> Logged:
    """Read a log.

    Raises:
        WorkspaceError: it is damaged.
    """
    try:
        document = read_checked_json(file)
    except SegwrightError as error:
        raise WorkspaceError(f"{error}; {_REMEDY}") from error
    cases = document.get("cases", {}) if isinstance(document, dict) else None
    if not isinstance(cases, dict) or not all(isinstance(entry, dict) for entry in cases.values()):
        raise WorkspaceError(f"{file}: expected an object with 'model' and 'cases', as predict writes it; {_REMEDY}")
    options = document.get("options")
    devices = options.get("devices") if isinstance(options, dict) else None
    names = [str(each) for each in devices] if isinstance(devices, list) else []
    return Logged(model=document.get("model"), devices=names, cases=cases)


def inputs_hash(case: Case, temperature: float = 1.0) -> str:
    """Return a hash of names, sizes and times of a case's images, by which a log knows that its input changed.

    Args:
        case: the case.
        temperature: divides the logits of written probabilities.
    """
    states: list[object] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.images]
    return content_hash(states if temperature == 1 else [states, temperature])


def file_state(file: Path, *, with_checksum: bool = False) -> list[int] | None:
    """Return size and modification time of a file, by which changes are found; None if there is no file.

    The checksum finds damage too; probability files have their own, beside or inside them, and may be large.
    """
    if not file.is_file():
        return None
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, *([file_crc(file)] if with_checksum else ())]


def matches(file: Path, state: Any, *, ignore_checksum: bool = False) -> bool:
    """Return whether a file is in a recorded state; the checksum, which earlier versions lack, is compared last."""
    if not isinstance(state, list) or file_state(file) != state[:_SIZE_AND_TIME]:
        return False
    return ignore_checksum or len(state) == _SIZE_AND_TIME or file_crc(file) == state[_SIZE_AND_TIME]
