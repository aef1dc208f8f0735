"""The compiled libraries of kernels: found and loaded once, their functions called in torch's threads.

`native/*.c` is compiled when the package is installed, where there is a C compiler, for AVX2, for AVX-512 and for
AVX512-FP16; without one, or on a processor that lacks all, there is no library, and torch's own operations serve.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

FOLDER: Final = Path(__file__).parent
_LIBRARIES: Final = MappingProxyType({"_kernels_avx2.so": {"AVX2", "AVX512"}, "_kernels_avx512.so": {"AVX512"}})
"""Which of torch's names for a processor each is for; the narrowest vectors, which suit all layers, first."""
_FP16_LIBRARY: Final = "_kernels_avx512fp16.so"
"""As wide, and convolutions multiply in float16; for a precision that is asked for."""

_VERSION: Final = 13
"""Of the functions in native/; a library of another version, from before an update, is not used."""
_GRAIN: Final = 32768
"""Values that are worth several threads, as torch has it."""


class Library:
    """Kernels for vectors of `lanes` floats, whose convolutions multiply `points` of this type.

    Args:
        path: of the compiled library.

    Raises:
        OSError: there is none.
        AttributeError: it is none of ours, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        self._functions.segwright_convolve_work.restype = ctypes.c_int64
        self._functions.segwright_call.restype = None
        self.lanes = int(self._functions.segwright_lanes())
        self.dtype = torch.float16 if self._functions.segwright_point_bytes() == 2 else torch.float32
        if self._functions.segwright_version() != _VERSION:
            raise AttributeError(f"{path} is of another version than {_VERSION}")

    def call(self, name: str, values: int, *arguments: Tensor | ctypes.Structure | float | None, work: int = 0) -> None:
        """Call a kernel in as many threads as torch computes with.

        Args:
            name: of the function in native/.
            values: that it writes or reads; where they are few, the caller's thread serves.
            arguments: as the function has them; None for no array.
            work: floats that each thread needs for itself.
        """
        threads = torch.get_num_threads() if values >= _GRAIN else 1
        space = torch.empty(threads * work)
        passed = (_Argument * len(arguments))(*map(_argument, arguments))
        self._functions.segwright_call(
            getattr(self._functions, name), passed, ctypes.c_void_p(space.data_ptr()), ctypes.c_int64(work),
            ctypes.c_int64(threads), _gomp_parallel(),
        )  # fmt: skip

    def work_of(self, name: str, shape: ctypes.Structure) -> int:
        """Ask a function in native/ how many floats of work each thread needs for `shape`."""
        return int(getattr(self._functions, name)(ctypes.byref(shape)))


@lru_cache(maxsize=1)
def libraries() -> tuple[Library, ...]:
    """Return the kernels that this processor can run, the widest vectors first; none without the narrowest."""
    found: list[Library] = []
    for name, abilities in _LIBRARIES.items():
        if torch.backends.cpu.get_cpu_capability() not in abilities:
            break
        try:
            found.insert(0, Library(FOLDER / name))
        except (OSError, AttributeError):  # none, or none of ours
            break
    return tuple(found)


@lru_cache(maxsize=1)
def fp16_libraries() -> tuple[Library, ...]:
    """Return the kernels that convolve in float16; none where the processor does not multiply twice as many at once."""
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if len(libraries()) < len(_LIBRARIES) or not abilities.get("avx512_fp16", False):
        return ()
    try:
        return (Library(FOLDER / _FP16_LIBRARY),)
    except (OSError, AttributeError):  # an older compiler knows no halves
        return ()


def library(*channels: int, fp16: bool = False) -> Library | None:
    """Return the kernels with the widest vectors of which all these numbers of channels are multiples; None without."""
    candidates = fp16_libraries() if fp16 else libraries()
    return next((each for each in candidates if not any(count % each.lanes for count in channels)), None)


class _Argument(ctypes.Union):
    """`Argument` of native.h."""

    _fields_ = [("whole", ctypes.c_int64), ("real", ctypes.c_float), ("array", ctypes.c_void_p)]  # noqa: RUF012


def _argument(value: Tensor | ctypes.Structure | float | None) -> _Argument:
    if isinstance(value, Tensor):
        return _Argument(array=value.data_ptr() if value.numel() else None)
    if isinstance(value, ctypes.Structure):
        return _Argument(array=ctypes.addressof(value))
    if isinstance(value, float):
        return _Argument(real=value)
    return _Argument(array=None) if value is None else _Argument(whole=value)


@lru_cache(maxsize=1)
def _gomp_parallel() -> Any:
    """Return the function by which torch calls its threads; None where its OpenMP has another."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
