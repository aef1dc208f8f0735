"""The compiled library of kernels: found and loaded once, its functions called in torch's threads.

`native/*.c` is compiled when the package is installed, where there is a C compiler; without one, or on a processor that
lacks AVX2, `library` gives None and torch's own operations serve.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

LIBRARY: Final = Path(__file__).with_name("_kernels.so")

_VERSION: Final = 11
"""Of the functions in native/; a library of another version, from before an update, is not used."""
_GRAIN: Final = 32768
"""Values that are worth several threads, as torch has it."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where there are none for this processor."""
    if torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.segwright_convolve_work.restype = ctypes.c_int64
        found.segwright_call.restype = found.segwright_rejoin.restype = None
        return found if found.segwright_version() == _VERSION else None
    except (OSError, AttributeError):  # none, or none of ours
        return None


def rejoin_freed_memory() -> None:
    """Have glibc join small rests of freed arrays in this thread's cache with their arrays' memory, see heap.c.

    For before an operation that makes large arrays, each of which takes new memory otherwise; where there is a library.
    """
    loaded = library()
    if loaded is not None:
        loaded.segwright_rejoin()


class _Argument(ctypes.Union):
    """`Argument` of native.h."""

    _fields_ = [("whole", ctypes.c_int64), ("real", ctypes.c_float), ("array", ctypes.c_void_p)]  # noqa: RUF012


def call(name: str, values: int, *arguments: Tensor | ctypes.Structure | float | None, work: int = 0) -> None:
    """Call a kernel in as many threads as torch computes with.

    Args:
        name: of the function in native/.
        values: that it writes or reads; where they are few, the caller's thread serves.
        arguments: as the function has them; None for no array.
        work: floats that each thread needs for itself.
    """
    loaded = library()
    assert loaded is not None, "the caller has asked"
    threads = torch.get_num_threads() if values >= _GRAIN else 1
    space = torch.empty(threads * work)
    passed = (_Argument * len(arguments))(*map(_argument, arguments))
    loaded.segwright_call(
        getattr(loaded, name), passed, ctypes.c_void_p(space.data_ptr()), ctypes.c_int64(work), ctypes.c_int64(threads),
        _team(),
    )  # fmt: skip


def work_of(name: str, shape: ctypes.Structure) -> int:
    """Ask a function in native/ how many floats of work each thread needs for `shape`."""
    loaded = library()
    assert loaded is not None, "the caller has asked"
    return int(getattr(loaded, name)(ctypes.byref(shape)))


def _argument(value: Tensor | ctypes.Structure | float | None) -> _Argument:
    if isinstance(value, Tensor):
        return _Argument(array=value.data_ptr() if value.numel() else None)
    if isinstance(value, ctypes.Structure):
        return _Argument(array=ctypes.addressof(value))
    if isinstance(value, float):
        return _Argument(real=value)
    return _Argument(array=None) if value is None else _Argument(whole=value)


@lru_cache(maxsize=1)
def _team() -> Any:
    """Return the function by which torch calls its threads; None where its OpenMP has another."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
