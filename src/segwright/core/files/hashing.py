"""Hashes and checksums of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def content_hash(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_crc(path: Path) -> int:
    """Return the CRC-32 of a file's content; detects damage, at 2 to 3 GB/s per core, but not forgery."""
    total = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            total = zlib.crc32(block, total)
    return total
