"""JSON documents on disk: written whole or not at all, read with an error that names the place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from segwright.core.errors import SegwrightError, WorkspaceError

M = TypeVar("M", bound=BaseModel)

_HASH_BLOCK = 1 << 20


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder) that takes its place when the block succeeds.

    The temporary name keeps every suffix, so that writers which choose a format by suffix do the right thing, and
    starts with a dot, so that folder listings of cases never see it. On an error nothing is left behind.

    Args:
        path: what is written.
        durable: force the content to the disk first. Not needed for a file whose checksum is written after it: many
            small files are several times faster without, and a power cut is found out by the checksum.

    Raises:
        WorkspaceError: the folder cannot be made or written to.
    """
    temporary = path.with_name(f".{uuid4().hex[:8]}.tmp.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable and temporary.is_file():
            _flush(temporary)
        os.replace(temporary, path)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        if error.filename not in {str(temporary), str(path), str(path.parent)}:
            raise
        raise WorkspaceError(
            f"{path}: cannot be written ({error.strerror}); choose a folder you may write to"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write a JSON document, atomically; key order is kept unless `sort_keys`."""
    write_text(path, json.dumps(document, indent=indent, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        SegwrightError: the file is missing, unreadable or not JSON; the line is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SegwrightError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SegwrightError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise SegwrightError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error


def parse_document(model: type[M], path: Path) -> M:
    """Read and validate a document.

    Raises:
        SegwrightError: the file is not JSON or does not fit `model`; file and key path are named.
    """
    document = read_json(path)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise SegwrightError(f"{path}: {describe_validation(error)}") from error


def describe_validation(error: ValidationError) -> str:
    """Return a validation error as one line: key path, what is wrong, for every finding."""
    return "; ".join(
        f"{'.'.join(str(part) for part in finding['loc']) or 'document'}: {finding['msg']}"
        for finding in error.errors(include_url=False, include_context=False)
    )


def content_hash(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
