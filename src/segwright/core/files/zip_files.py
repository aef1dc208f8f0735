"""Open untrusted zip files, after checking the size of their list of entries; write the files of a folder to one."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Final

from segwright.core.errors import SegwrightError

MAX_DIRECTORY_BYTES: Final = 8 * 2**20
"""Of the list of entries at a zip file's end, in bytes: 20,000 with the longest names have less."""
METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods of entries that are read: others may need gigabytes to unpack, if an entry says so."""

_END: Final = struct.Struct("<4s8xL6x")
"""The record at the end of a zip file: its signature, and the size of the list of entries in bytes."""
_END_64: Final = struct.Struct("<4s36xQ8x")
_LOCATOR_SIZE: Final = 20
_MAX_COMMENT_BYTES: Final = 2**16 - 1


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file whose list of entries is at most `MAX_DIRECTORY_BYTES` bytes.

    Raises:
        SegwrightError: the list is longer; Python would need ten times as much memory for it.
        OSError: the file is missing, not a regular file or cannot be read.
        BadZipFile: it is not a zip file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for a writer
        raise OSError("it is not a regular file")
    with path.open("rb") as stream:
        size = _directory_size(stream)
    if size > MAX_DIRECTORY_BYTES:
        raise SegwrightError(f"{path}: refused, its list of entries has {size / 2**20:.0f} MiB")
    return zipfile.ZipFile(path)


def write_zip(folder: Path, file: Path, *, prefix: str = "", compress: bool = True) -> None:
    """Write all files below a folder to a zip file.

    Args:
        folder: with the files.
        file: the new zip file.
        prefix: folder inside the zip file; none by default.
        compress: whether to compress the files.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, (PurePosixPath(prefix) / path.relative_to(folder).as_posix()).as_posix())


def _directory_size(stream: IO[bytes]) -> int:
    """Return the size of the list of entries in bytes, from the end of the file; 0 if it is not a zip file."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, length - _END.size - _MAX_COMMENT_BYTES - _LOCATOR_SIZE - _END_64.size))
    tail = stream.read()
    at = len(tail) - _END.size
    if at < 0 or not (tail[at:].startswith(b"PK\5\6") and tail.endswith(b"\0\0")):
        at = tail.rfind(b"PK\5\6", max(0, at - _MAX_COMMENT_BYTES))
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
