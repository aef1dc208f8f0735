"""Read files of `torch.save` as data: plain values, and tensors on demand, so that an optimiser's state is not loaded.

torch's own restricted reader is not used: its list of allowed globals is shared by all threads, it builds
`bytearray`s of any length, and it decompresses records of any size.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from struct import error as StructError
from typing import Any, Final

import torch
from torch import Tensor

from segwright.core.errors import ModelError, SegwrightError
from segwright.core.files.json_text import MAX_LEVELS
from segwright.core.files.zip_files import open_zip
from segwright.interop.instructions import MAX_WORK, PickleInterpreter, RefusedError, Storage, StoredTensor

MAX_PICKLE_BYTES: Final = 64 * 2**20
"""Largest part without tensors, in bytes; the log of 1000 epochs with 100 classes has 7 MiB."""
MAX_VIEW_RATIO: Final = 16
"""Largest ratio of the bytes of all tensors to the file; nnU-Net names each weight of an encoder four times."""

_DAMAGES: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError),
    *(RuntimeError, StructError, TypeError, ValueError, zipfile.BadZipFile),
)
"""Errors that a damaged file may cause; none comes from code in the file."""

_BLOCK: Final = 1 << 22
_PICKLE: Final = re.compile(r"[^/]+/data\.pkl")
_CONTAINERS: Final = (dict, list, tuple, set)


def is_torch_file(path: Path) -> bool:
    """Whether a zip file was written by `torch.save`; a file that cannot be read was not."""
    try:
        with open_zip(path) as archive:
            return any(_PICKLE.fullmatch(name) for name in archive.namelist())
    except (*_DAMAGES, SegwrightError):
        return False


def read_document(path: Path) -> Any:
    """Read a file of `torch.save`: plain values, and tensors as `StoredTensor`.

    Raises:
        ModelError: it is damaged, compressed, or needs more than plain values, which the message names.
    """
    try:
        with open_zip(path) as archive:
            prefix = _prefix(archive, path.stat().st_size)
            entry = archive.getinfo(f"{prefix}data.pkl")
            if entry.file_size > MAX_PICKLE_BYTES:
                raise RefusedError(f"{entry.file_size / 2**20:.0f} MiB beside its tensors")
            document = PickleInterpreter(archive.read(entry)).run()
        _require_tree(document)
        return document
    except RefusedError as error:
        raise ModelError(f"{path}: refused, since it is not only weights and plain values ({error})") from error
    except SegwrightError:
        raise
    except _DAMAGES as error:
        raise ModelError(f"{path}: cannot be read as a checkpoint ({_reason(error)}); copy it again") from error


def read_tensors(path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Read the tensors that `read_document` described; those in one record share memory.

    Raises:
        ModelError: a record is missing, damaged or smaller than its tensor.
    """
    flat: dict[Storage, Tensor] = {}
    result: dict[str, Tensor] = {}
    name = ""
    try:
        left = path.stat().st_size  # bytes that records may still have
        viewed = MAX_VIEW_RATIO * left  # bytes that tensors, which may share records, may still have
        with open_zip(path) as archive:
            prefix = _prefix(archive, left)
            for name, tensor in stored.items():
                viewed -= tensor.outline().nbytes
                if viewed < 0:
                    raise ModelError(f"tensors share memory more than {MAX_VIEW_RATIO} times over")
                if tensor.storage not in flat:
                    left -= tensor.storage.numel * tensor.storage.dtype.itemsize
                    if left < 0:
                        raise ModelError("tensors of more bytes than the file has")
                    flat[tensor.storage] = _values(archive, f"{prefix}data/{tensor.storage.key}", tensor.storage)
                result[name] = flat[tensor.storage].as_strided(tensor.shape, tensor.stride, tensor.offset)
    except RefusedError as error:
        raise ModelError(f"{path}: refused, since it is not only weights and plain values ({error})") from error
    except ModelError as error:
        raise ModelError(f"{path}: refused, '{name}': {error}") from error
    except _DAMAGES as error:
        raise ModelError(f"{path}: '{name}' cannot be read ({_reason(error)}); copy it again") from error
    return result


def _require_tree(document: Any) -> None:
    """Check that a walk over all values ends soon: containers may hold each other many times, or themselves."""
    level, left, depth = [document], MAX_WORK, 0
    while level:
        depth, left = depth + 1, left - len(level)
        level = [
            value
            for container in level
            if isinstance(container, _CONTAINERS)
            for value in (container.values() if isinstance(container, dict) else container)
        ]
        if depth > MAX_LEVELS or len(level) > left:
            raise RefusedError("its values hold each other too many times")


def _prefix(archive: zipfile.ZipFile, size: int) -> str:
    """Return the folder of torch's records in the file, after checking all records."""
    entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            sizes = f"from {entry.compress_size} to {entry.file_size} bytes"
            raise RefusedError(
                f"its record '{entry.filename[:80]}' is compressed, {sizes}; torch stores them as they are"
            )
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > size:
        raise RefusedError("its records overlap")
    pickles = [name for name in names if _PICKLE.fullmatch(name)]
    if len(pickles) != 1:
        raise ValueError("it has no data.pkl, as files of torch.save have")
    prefix = pickles[0].removesuffix("data.pkl")
    order = f"{prefix}byteorder"
    if order in names and (archive.getinfo(order).file_size > len(b"little") or archive.read(order) != b"little"):
        raise ValueError("its numbers are big-endian")
    return prefix


def _values(archive: zipfile.ZipFile, record: str, storage: Storage) -> Tensor:
    """Return the flat tensor in a record."""
    if not storage.numel:
        return torch.empty(0, dtype=storage.dtype)
    size = storage.numel * storage.dtype.itemsize
    if archive.getinfo(record).file_size < size:
        raise ModelError(f"it needs {size} bytes, but its record has {archive.getinfo(record).file_size}")
    buffer = bytearray(size)
    with archive.open(record) as stream:
        left = memoryview(buffer)
        while left and (block := stream.read(min(len(left), _BLOCK))):
            left[: len(block)] = block
            left = left[len(block) :]
    if left:
        raise EOFError("the record ends early")
    return torch.frombuffer(buffer, dtype=storage.dtype)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
