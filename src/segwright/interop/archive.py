"""Zip files from other people: looked through before anything is written, and never trusted about their sizes."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from segwright.core.errors import ModelError, SegwrightError
from segwright.core.files.zip_files import METHODS, open_zip

MOST_ENTRIES: Final = 20_000
MOST_BYTES: Final = 32 * 2**30
"""Unpacked; five folds of the largest network with optimiser states have 10 GiB."""
LARGEST_RATIO: Final = 100
"""Unpacked to packed size of an entry that is larger than `SMALL_BYTES`; weights hardly shrink, text tenfold."""
SMALL_BYTES: Final = 10 * 2**20
LARGEST_TOTAL_RATIO: Final = 20
"""Of all entries to the file, where they are larger than `SMALL_BYTES`; a model is mostly weights."""
LONGEST_NAME: Final = 255
"""Of a file, in bytes; what the usual file systems take."""

_BLOCK: Final = 1 << 20
_DAMAGES: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError),
    *(OverflowError, LookupError),
)
"""What a damaged zip file may cause while it is listed and read."""


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
    except SegwrightError:
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
        if entry.compress_type not in METHODS:
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
