"""Zip files from anybody, opened once the length of their list of entries is known."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import IO, Final

from segwright.core.errors import SegwrightError

LARGEST_DIRECTORY: Final = 8 * 2**20
"""Of the list of entries at a zip file's end, in bytes: 20,000 with the longest names have less."""
METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How entries may be packed: others take gigabytes to unpack where their entry says so."""

_END: Final = struct.Struct("<4s8xL6x")
"""The record that ends a zip file: its mark, and the bytes of the list of entries."""
_END_64: Final = struct.Struct("<4s36xQ8x")
_LOCATOR_SIZE: Final = 20
_LONGEST_COMMENT: Final = 2**16 - 1


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file once its list of entries is seen to be no longer than `LARGEST_DIRECTORY`.

    Raises:
        SegwrightError: the list is longer; Python would keep it in ten times as much memory.
        OSError: there is no regular file that can be read.
        BadZipFile: it is no zip file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for whoever writes into it
        raise OSError("it is not a regular file")
    with path.open("rb") as stream:
        size = _directory_size(stream)
    if size > LARGEST_DIRECTORY:
        raise SegwrightError(f"{path}: refused, its list of entries has {size / 2**20:.0f} MiB")
    return zipfile.ZipFile(path)


def _directory_size(stream: IO[bytes]) -> int:
    """Return the bytes of the list of entries, as the end of the file tells; 0 if it is no zip file."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, length - _END.size - _LONGEST_COMMENT - _LOCATOR_SIZE - _END_64.size))
    tail = stream.read()
    at = len(tail) - _END.size
    if at < 0 or not (tail[at:].startswith(b"PK\5\6") and tail.endswith(b"\0\0")):
        at = tail.rfind(b"PK\5\6", max(0, at - _LONGEST_COMMENT))
    if at < 0 or len(tail) - at < _END.size:
        return 0
    _, size = _END.unpack_from(tail, at)
    at_64 = at - _LOCATOR_SIZE - _END_64.size
    if at_64 >= 0 and tail[at - _LOCATOR_SIZE :].startswith(b"PK\6\7"):
        mark, size_64 = _END_64.unpack_from(tail, at_64)
        if mark != b"PK\6\6":
            raise zipfile.BadZipFile("its end is damaged")
        size = max(size, size_64)
    return int(size)
