"""Extract untrusted zip files: entries are checked before anything is written, and declared sizes are enforced."""

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

MAX_ENTRIES: Final = 20_000
MAX_BYTES: Final = 32 * 2**30
"""Largest unpacked size; five folds of the largest network with optimiser states have 10 GiB."""
MAX_RATIO: Final = 100
"""Largest compression ratio of an entry above `SMALL_BYTES`; weights hardly shrink, text tenfold."""
SMALL_BYTES: Final = 10 * 2**20
MAX_TOTAL_RATIO: Final = 20
"""Largest ratio of all entries to the file, if they are above `SMALL_BYTES`; a model is mostly weights."""
MAX_NAME_BYTES: Final = 255
"""Longest file name in bytes, the limit of common file systems."""

_BLOCK: Final = 1 << 20
_DAMAGES: Final = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError),
    *(OverflowError, LookupError),
)
"""Errors that a damaged zip file may cause."""


class UnpackedSizeError(ModelError):
    """A zip file would unpack to more than is accepted."""


def extract(archive: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Unpack a zip file into an empty folder.

    Args:
        archive: the file.
        target: the folder.
        max_bytes: of all entries, unpacked.

    Raises:
        UnpackedSizeError: the entries have more bytes, or grow more than real data do.
        ModelError: the file is not a zip file, or an entry leaves the folder, is a link, clashes with another one, or
            would fill the disk.
    """
    try:
        with open_zip(archive) as stream:
            entries = [entry for entry in stream.infolist() if not entry.is_dir()]
            _require_safe(archive, entries, max_bytes)
            for entry in entries:
                _write(stream, entry, target / entry.filename, archive)
    except SegwrightError:
        raise
    except _DAMAGES as error:
        raise ModelError(f"{archive}: not a readable zip file ({error}); download it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"{archive}: cannot be unpacked ({reason}); unpack it yourself and name the folder") from error


def _require_safe(archive: Path, entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    """Check names, links, compression and sizes of all entries.

    Raises:
        ModelError: an entry is refused, or all of them together are.
    """
    for entry in entries:
        name = entry.filename
        parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
        if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\0" in name:
            raise ModelError(f"{archive}: refused, its entry '{name}' leads out of the folder it is unpacked to")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ModelError(f"{archive}: refused, its entry '{name}' is a link")
        if entry.compress_type not in METHODS:
            raise ModelError(f"{archive}: refused, its entry '{name}' is packed with method {entry.compress_type}")
        if entry.file_size > max(SMALL_BYTES, MAX_RATIO * entry.compress_size):
            raise UnpackedSizeError(
                f"{archive}: refused, its entry '{name}' grows from {entry.compress_size} to {entry.file_size} bytes"
            )
    _require_distinct(archive, entries)
    total = sum(entry.file_size for entry in entries)
    packed = archive.stat().st_size
    if sum(entry.compress_size for entry in entries) > packed:
        raise ModelError(f"{archive}: refused, its {len(entries)} entries overlap")
    if total > max(SMALL_BYTES, MAX_TOTAL_RATIO * packed):
        raise UnpackedSizeError(f"{archive}: refused, its {len(entries)} entries grow from {packed} to {total} bytes")
    free = shutil.disk_usage(archive.parent).free
    if len(entries) > MAX_ENTRIES or total > min(max_bytes, free):
        raise UnpackedSizeError(
            f"{archive}: refused, it holds {len(entries)} files of {total / 2**30:.1f} GiB unpacked; at most "
            f"{MAX_ENTRIES} files and {min(max_bytes, free) / 2**30:.1f} GiB are unpacked here"
        )


def _require_distinct(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Check that all entries are different files, and that none is a folder of another."""
    files: set[PurePosixPath] = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path in files:
            raise ModelError(f"{archive}: refused, it has two entries '{entry.filename}'")
        if any(len(part.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES for part in path.parts):
            raise ModelError(f"{archive}: refused, the name of its entry '{entry.filename[:80]}...' is too long")
        files.add(path)
    for path in files:
        if not files.isdisjoint(path.parents):
            raise ModelError(f"{archive}: refused, its entry '{path}' lies below another file")


def _write(stream: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """Write one entry, at most its declared size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with stream.open(entry) as source, path.open("xb") as target:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise UnpackedSizeError(f"{archive}: refused, its entry '{entry.filename}' is larger than it says")
            target.write(block)
