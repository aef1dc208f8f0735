"""Zip files from other people: looked through before anything is written, and never trusted about their sizes."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final

from segwright.core.errors import ModelError

MOST_ENTRIES: Final = 20_000
MOST_BYTES: Final = 32 * 2**30
"""Unpacked; five folds of the largest network with optimiser states have 10 GiB."""
LARGEST_RATIO: Final = 100
"""Unpacked to packed size of an entry that is larger than `SMALL_BYTES`; weights hardly shrink, text tenfold."""
SMALL_BYTES: Final = 10 * 2**20
LARGEST_TOTAL_RATIO: Final = 20
"""Of all entries to the file, where they are larger than `SMALL_BYTES`; a model is mostly weights."""
LARGEST_DIRECTORY: Final = 8 * 2**20
"""Of the list of entries at a zip file's end, in bytes: `MOST_ENTRIES` with the longest names have less."""
LONGEST_NAME: Final = 255
"""Of a file, in bytes; what the usual file systems take."""

_BLOCK: Final = 1 << 20
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END: Final = struct.Struct("<4s8xL6x")
"""The record that ends a zip file: its mark, and the bytes of the list of entries."""
_END_64: Final = struct.Struct("<4s36xQ8x")
_LOCATOR_SIZE: Final = 20
_LONGEST_COMMENT: Final = 2**16 - 1
_DAMAGES: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError),
    *(OverflowError, LookupError),
)
"""What a damaged zip file may cause while it is listed and read."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file once the length of its list of entries is seen to be one of `MOST_ENTRIES` at the most.

    Raises:
        ModelError: the list is longer; Python would keep it in ten times as much memory.
        OSError: there is no regular file that can be read.
        BadZipFile: it is no zip file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for whoever writes into it
        raise OSError("it is not a regular file")
    with path.open("rb") as stream:
        size = _directory_size(stream)
    if size > LARGEST_DIRECTORY:
        raise ModelError(f"{path}: refused, its list of entries has {size / 2**20:.0f} MiB")
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


def extract(archive: Path, target: Path) -> None:
    """Unpack a zip file into an empty folder.

    Raises:
        ModelError: it is no zip file, or an entry leads out of the folder, is a link, in the way of another, or would
            fill the disk.
    """
    try:
        with open_zip(archive) as stream:
            entries = [entry for entry in stream.infolist() if not entry.is_dir()]
            _require_harmless(archive, entries)
            for entry in entries:
                _write(stream, entry, target / entry.filename, archive)
    except ModelError:
        raise
    except _DAMAGES as error:
        raise ModelError(f"{archive}: no zip file that can be read ({error}); download it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"{archive}: cannot be unpacked ({reason}); unpack it yourself and name the folder") from error


def _require_harmless(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    for entry in entries:
        name = entry.filename
        parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
        if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\0" in name:
            raise ModelError(f"{archive}: refused, its entry '{name}' leads out of the folder it is unpacked to")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ModelError(f"{archive}: refused, its entry '{name}' is a link")
        if entry.compress_type not in _METHODS:
            raise ModelError(f"{archive}: refused, its entry '{name}' is packed with method {entry.compress_type}")
        if entry.file_size > max(SMALL_BYTES, LARGEST_RATIO * entry.compress_size):
            raise ModelError(
                f"{archive}: refused, its entry '{name}' grows from {entry.compress_size} to {entry.file_size} bytes"
            )
    _require_apart(archive, entries)
    total = sum(entry.file_size for entry in entries)
    packed = archive.stat().st_size
    if sum(entry.compress_size for entry in entries) > packed:
        raise ModelError(f"{archive}: refused, its {len(entries)} entries overlap")
    if total > max(SMALL_BYTES, LARGEST_TOTAL_RATIO * packed):
        raise ModelError(f"{archive}: refused, its {len(entries)} entries grow from {packed} to {total} bytes")
    free = shutil.disk_usage(archive.parent).free
    if len(entries) > MOST_ENTRIES or total > min(MOST_BYTES, free):
        raise ModelError(
            f"{archive}: refused, it holds {len(entries)} files of {total / 2**30:.1f} GiB unpacked; at most "
            f"{MOST_ENTRIES} files and {min(MOST_BYTES, free) / 2**30:.1f} GiB are unpacked here"
        )


def _require_apart(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    """See that every entry is a file of its own, and none a folder of another."""
    files: set[PurePosixPath] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path in files:
            raise ModelError(f"{archive}: refused, it has two entries '{entry.filename}'")
        if any(len(part.encode("utf-8", "surrogateescape")) > LONGEST_NAME for part in path.parts):
            raise ModelError(f"{archive}: refused, the name of its entry '{entry.filename[:80]}...' is too long")
        files.add(path)
    for path in files:
        if not files.isdisjoint(path.parents):
            raise ModelError(f"{archive}: refused, its entry '{path}' lies below another file")


def _write(stream: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """Write one entry, no further than its declared size, whatever its data say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with stream.open(entry) as source, path.open("xb") as target:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise ModelError(f"{archive}: refused, its entry '{entry.filename}' is larger than it says")
            target.write(block)
