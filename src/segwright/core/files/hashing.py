"""Hashes and checksums of files and of JSON values."""

from __future__ import annotations

import errno
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def content_hash(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def file_crc(path: Path) -> int:
    """Return the CRC-32 of a file's content; detects damage, at 2 to 3 GB/s per core, but not forgery."""
    total = 0
    for block in _blocks(path):
        total = zlib.crc32(block, total)
    return total


def _blocks(path: Path) -> Iterator[bytes]:
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block
