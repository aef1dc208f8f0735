"""Write files atomically, with errors of disk and memory that say what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn
from uuid import uuid4

from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.resources import resource_error

ABANDONED_S: Final = 600.0
"""Age at which a temporary file counts as left by a killed process; no write pauses for so long."""
_PROBE_BYTES = 1 << 16
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp\.(?P<final>.+)", re.DOTALL)
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}


@contextmanager
def atomic_path(path: Path, *, durable: bool = True, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` (file or folder) that replaces it when the block succeeds.

    The temporary name keeps every suffix, so that writers which choose a format by suffix do the right thing, and
    starts with a dot, so that folder listings of cases never see it. On an error nothing is left behind.

    Args:
        path: what is written.
        durable: flush the content to the disk first. Not needed for a file whose checksum is written after it: many
            small files are several times faster without, and the checksum detects a power cut.
        size: bytes that will be written, if known; for the message about a full disk.

    Raises:
        WorkspaceError: the folder cannot be made or written to, or a folder has the name of the file.
        DiskError: the disk is full, or refuses a file of this size.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _raise_folder_error(error, path)
    try:
        with disk_errors(path, temporary, size=size):
            yield temporary
            if durable and temporary.is_file():
                _flush(temporary)
            os.replace(temporary, path)
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # a name that is too long, or a folder that is gone
                temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a new temporary name beside `path`."""
    return path.with_name(f".{uuid4().hex[:8]}.tmp.{path.name}")


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path`; delete it at the end (after a kill, `sweep_leftovers` does)."""
    folder = temporary_beside(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_leftovers(folder: Path, names: Collection[str] | None = None, *, is_shared: bool = False) -> None:
    """Delete the temporary files that a killed process left in a folder, of `names` or by default of any name.

    No other process may be writing them, unless `is_shared`: then files younger than `ABANDONED_S` are kept.
    """
    if not folder.is_dir():
        return
    for path in folder.glob(".*.tmp.*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (names is not None and found["final"] not in names):
            continue
        if is_shared and not _is_abandoned(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except OSError:
        return False


def require_writable_folder(folder: Path) -> None:
    """Require that files can be written into a folder, which need not exist; nothing is made or written.

    Raises:
        WorkspaceError: a file is in its place, or the folder, or the one it would be made in, is not writable.
    """
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        _raise_folder_error(error, folder)
    if not existing.is_dir():
        raise WorkspaceError(f"{folder}: cannot be written to: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WorkspaceError(
            f"{folder}: cannot be written to: {existing} is not writable; choose a folder you may write to"
        )


@contextmanager
def disk_errors(path: Path, temporary: Path, *, size: int | None = None) -> Iterator[None]:
    """Convert disk and memory errors of a block that writes `path` (via `temporary`) into errors with cause and remedy.

    Raises:
        WorkspaceError: the path cannot be written.
        DiskError: the disk is full, or refuses a file of this size.
        OutOfMemoryError: memory is used up.
    """
    try:
        yield
    except SegwrightError:
        raise
    except Exception as error:
        _raise_write_error(error, path, temporary, size)
        raise


def _raise_write_error(error: Exception, path: Path, temporary: Path, size: int | None) -> None:
    """Raise the error to show for a failure to write `path`; return if neither disk nor memory is the cause."""
    own = {None, str(temporary), str(path), str(path.parent)}
    if isinstance(error, OSError) and error.filename is not None:
        if error.filename not in own or error.errno == errno.ENOENT:
            return
        _raise_path_error(error, path)
        error.filename = str(path)  # users do not know the temporary name
    if found := resource_error(error, path, needed=size) or _growth_error(temporary, path, size):
        raise found from error


def _growth_error(temporary: Path, path: Path, size: int | None) -> SegwrightError | None:
    """Return why a file cannot grow, which the libraries of some formats do not report; None if it can."""
    if not temporary.is_file():
        return None
    try:
        with temporary.open("ab") as stream:
            stream.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return resource_error(OSError(error.errno, error.strerror), path, needed=size)
    return None


def _raise_folder_error(error: OSError, path: Path) -> NoReturn:
    """Raise the error to show for a failure to make or reach the folder of `path`; the given one if unknown."""
    _raise_path_error(error, path)
    if found := resource_error(error, path):
        raise found from error
    raise error


def _raise_path_error(error: OSError, path: Path) -> None:
    """Raise the error to show for a failure to write `path` if the path itself is the cause."""
    if error.errno == errno.EISDIR or (error.errno in _IN_THE_WAY and path.is_dir()):
        reason = "is a folder already; name another file, or remove the folder"
    elif error.errno in _IN_THE_WAY:
        blocking = next((str(place) for place in path.parents if place.exists() and not place.is_dir()), "a file")
        reason = f"cannot be written: {blocking} is not a folder; choose another one"
    elif error.errno in _REFUSED:
        reason = f"cannot be written ({error.strerror}); choose a folder you may write to"
    else:
        return
    raise WorkspaceError(f"{path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def append_text(path: Path, text: str) -> None:
    """Append `text` as UTF-8 to a file, which need not exist; links are not followed.

    Raises:
        WorkspaceError: the path is a link, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # the latter is FreeBSD's
            raise WorkspaceError(f"{path}: is a link, which is not followed for writing; remove it") from error
        raise
    with os.fdopen(file, "a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)


def _flush(path: Path) -> None:
    with path.open("r+b") as stream:  # Windows flushes only what is open for writing
        os.fsync(stream.fileno())
