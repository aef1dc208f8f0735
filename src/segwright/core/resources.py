"""Recognise full disks, exhausted memory and refused files in the error messages of any library."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segwright.core.errors import DiskError, OutOfMemoryError, SegwrightError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_REFUSED: Final = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_KNOWN: Final = {
    *_FULL, *_REFUSED,
    *(errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}  # fmt: skip
_NUMBER: Final = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # Rust's way, and Python's
_MESSAGES: Final = (
    (re.compile(r"no space left|out of disk space|not enough space on the disk|PytorchStreamWriter failed", re.I),
     errno.ENOSPC),
    (re.compile(r"inline_container\.cc.*unexpected pos", re.I | re.S), errno.ENOSPC),
    (re.compile(r"quota exceeded", re.I), errno.EDQUOT),
    (re.compile(r"file too large", re.I), errno.EFBIG),
    (re.compile(r"read-only file system", re.I), errno.EROFS),
    (re.compile(r"too many open files", re.I), errno.EMFILE),
    (re.compile(r"input/output error", re.I), errno.EIO),
    (re.compile(r"permission denied", re.I), errno.EACCES),
    (re.compile(
        r"out of memory|not enough memory|(?:can't|cannot|failed to|unable to) allocate|\[enforce fail at alloc"
        r"|bad_alloc|bad allocation|_ALLOC_FAILED|can't start new thread|failed to map segment", re.I),
     errno.ENOMEM),
)  # fmt: skip
"""Messages of torch, safetensors, ITK, numpy and the dynamic linker; each seen on a full tmpfs or under `ulimit -v`."""
_ON_GPU: Final = re.compile(r"\b(?:CUDA|MPS|HIP|XPU|CUBLAS|CUDNN)", re.I)
_SIZE: Final = re.compile(r"(?:to allocate|unable to allocate)\s+([\d.]+)\s*(bytes|[KMGTPE]iB)?", re.I)
_TORCH_ERROR: Final = "OutOfMemoryError"
"""Torch's class for GPUs, matched by name because `core` is imported without torch."""
_KEPT: Final = "finished work is kept"


def resource_error(
    error: BaseException, path: Path | None = None, *, needed: int | None = None
) -> SegwrightError | None:
    """Return the error to show for a failure of disk or memory; None for any other failure.

    Args:
        error: as a library raised it; its causes count, too.
        path: the file that was written, where the error does not name one.
        needed: size of that file in bytes, if known.
    """
    for each, is_cause in _chain(error):
        if isinstance(each, DiskError | OutOfMemoryError):
            return each
        code = _errno_of(each)
        if code in _REFUSED and not is_cause:
            continue  # a refused file in the context of another error was often expected and handled
        if code == errno.ENOMEM:
            return OutOfMemoryError(_memory_text(str(each), on_gpu=type(each).__name__ == _TORCH_ERROR))
        if code is not None:
            named = each.filename if isinstance(each, OSError) else None
            return DiskError(_disk_text(code, Path(os.fsdecode(named)) if named else path, needed))
    return None


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield an error, then its causes and contexts, each with whether only explicit causes (`from`) lead to it."""
    seen: set[int] = set()
    current: BaseException | None = error
    is_cause = True
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current, is_cause
        is_cause = is_cause and current.__cause__ is not None
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _errno_of(error: BaseException) -> int | None:
    """Return the number of the system's error behind an exception."""
    if isinstance(error, MemoryError) or type(error).__name__ == _TORCH_ERROR:
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _KNOWN else None
    if isinstance(error, SegwrightError | LookupError | TypeError):
        return None
    text = str(error)
    if found := _NUMBER.search(text):
        number = int(found[1] or found[2])
        if number in _KNOWN:
            return number
    return next((code for pattern, code in _MESSAGES if pattern.search(text)), None)


def _disk_text(code: int, path: Path | None, needed: int | None) -> str:
    where = f"{path}: " if path else ""
    if code in _FULL:
        limit = "the disk quota is used up" if code == errno.EDQUOT else "no space left on the disk"
        sizes = [f"{format_bytes(needed)} are needed"] if needed else []
        if path is not None and (free := _free_bytes(path)) is not None and code == errno.ENOSPC:
            sizes.append(f"{format_bytes(free)} are free")
        listed = f" ({', '.join(sizes)})" if sizes else ""
        return f"{where}{limit}{listed}; free some, or choose a folder on another disk; {_KEPT}"
    if code == errno.EFBIG:
        size = f" of {format_bytes(needed)}" if needed else ""
        return (
            f"{where}a file{size} is larger than the system lets this process write; raise the limit (ulimit -f), or "
            f"choose a folder on another file system; {_KEPT}"
        )
    if code == errno.EROFS:
        return f"{where}is on a read-only file system; choose a folder that you may write to"
    if code in (errno.EMFILE, errno.ENFILE):
        return (
            f"{where}too many files are open; raise the limit (ulimit -n), or use fewer --workers where the command "
            f"has them; {_KEPT}"
        )
    if code in _REFUSED:
        return f"{where}cannot be opened or written ({os.strerror(code)}); check the path and its permissions"
    return f"{where}the disk failed ({os.strerror(code)}); check it, or use a folder on another one; {_KEPT}"


def _memory_text(text: str, *, on_gpu: bool) -> str:
    found = _SIZE.search(text)
    amount = ""
    if found:
        unit = found[2]
        size = f"{found[1]} {unit}" if unit and unit.lower() != "bytes" else format_bytes(int(float(found[1])))
        amount = f" ({size} more were needed)"
    if on_gpu or _ON_GPU.search(text):
        return (
            f"out of memory on the GPU{amount}; end other programs that use it, train with a smaller "
            f"--batch-size or --cache ram, or use --device cpu; {_KEPT}"
        )
    return (
        f"out of memory{amount}; end other programs, use fewer --workers where the command has them, or train with "
        f"--cache none or a smaller --batch-size; {_KEPT}"
    )


def format_bytes(size: float) -> str:
    """Format a number of bytes.

    >>> format_bytes(512), format_bytes(3 * 2**20)
    ('512 bytes', '3.0 MiB')
    """
    if size < 1024:
        return f"{size:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _free_bytes(path: Path) -> int | None:
    try:
        return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free
    except (OSError, StopIteration):
        return None
