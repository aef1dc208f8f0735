"""Read and write JSON documents: checksums, validation, and errors that name the file and the key."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from segwright.core.errors import SegwrightError
from segwright.core.files.atomic_io import write_text
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_text import MAX_BYTES, parse_json

M = TypeVar("M", bound=BaseModel)

CHECKSUM: Final = "checksum"


def write_json(path: Path, document: object, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write a JSON document, atomically; key order is kept unless `sort_keys`."""
    write_text(path, json.dumps(document, indent=indent, sort_keys=sort_keys) + "\n")


def write_checked_json(path: Path, document: Mapping[str, Any], *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write a JSON document as `write_json`, and a checksum, which `read_checked_json` verifies."""
    write_json(path, with_checksum(document), indent=indent, sort_keys=sort_keys)


def read_json(path: Path) -> Any:
    """Read a JSON document, within the limits of `json_text`.

    Raises:
        SegwrightError: the file is missing, unreadable, not UTF-8 or not JSON; the line is named.
    """
    return parse_json(read_bytes(path, max_bytes=MAX_BYTES), where=str(path))


def read_checked_json(path: Path) -> Any:
    """Read a JSON document, verify its checksum and remove it; documents without one (older, nnU-Net's) are accepted.

    Raises:
        SegwrightError: as `read_json`, or the checksum does not match.
    """
    document = read_json(path)
    if not isinstance(document, dict) or CHECKSUM not in document:
        return document
    if not has_valid_checksum(document):
        raise SegwrightError(
            f"{path}: damaged (its checksum does not match); copy or create it again; if it was edited on "
            f"purpose, remove its line '{CHECKSUM}'"
        )
    return {key: value for key, value in document.items() if key != CHECKSUM}


def read_json_lines(path: Path) -> list[tuple[str, Any]]:
    """Read a file of JSON lines; return each line with its document, None where the line is damaged.

    Raises:
        SegwrightError: the file is missing or unreadable.
    """
    lines = []
    for line in read_bytes(path, max_bytes=MAX_BYTES).splitlines(keepends=True):
        try:
            document = parse_json(line, where=str(path))
        except SegwrightError:
            document = None
        lines.append((line.decode("utf-8", "replace"), document))
    return lines


def parse_document(model: type[M], path: Path) -> M:
    """Read and validate a document; its checksum, if it has one, is verified first.

    Raises:
        SegwrightError: the file is not JSON, is damaged or does not fit `model`; file and key path are named.
    """
    document = read_checked_json(path)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise SegwrightError(f"{path}: {describe_validation(error)}") from error


def describe_validation(error: ValidationError) -> str:
    """Return a validation error as one line: key path, what is wrong, for every finding."""
    return "; ".join(
        f"{'.'.join(str(part) for part in finding['loc']) or 'document'}: "
        + finding["msg"].removeprefix("Value error, ")
        for finding in error.errors(include_url=False, include_context=False)
    )


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with a hash of its content added, by which `has_valid_checksum` detects damage."""
    content = {key: value for key, value in document.items() if key != CHECKSUM}
    as_read = json.loads(json.dumps(content, default=str))  # numeric keys become strings, which sort differently
    return {**content, CHECKSUM: content_hash(as_read)}


def has_valid_checksum(document: Mapping[str, Any]) -> bool:
    """Whether a document matches its checksum; one without (of an older version) counts as valid."""
    return CHECKSUM not in document or document[CHECKSUM] == with_checksum(document)[CHECKSUM]


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole file of at most `max_bytes` bytes.

    Raises:
        SegwrightError: it is missing, not a regular file, unreadable or too large.
    """
    try:
        status = path.stat()
        if refusal := _refusal(status, max_bytes):
            raise SegwrightError(f"{path}: {refusal}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SegwrightError(f"{path}: no such file") from error
    except OSError as error:
        raise SegwrightError(f"{path}: cannot be read ({error.strerror or error})") from error


def _refusal(status: os.stat_result, max_bytes: int) -> str:
    """Return why a file is not read; empty if it may be."""
    if stat.S_ISDIR(status.st_mode):
        return "is a folder, expected a file"
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        return "is a pipe or a device, expected a file"
    if status.st_size > max_bytes:
        return f"is {status.st_size / 2**20:.0f} MiB, above the limit of {max_bytes / 2**20:.0f} MiB"
    return ""
