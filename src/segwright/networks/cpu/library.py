"""Find and load the compiled libraries of CPU kernels, and call their functions in torch's threads.

`native/*.c` is compiled when the package is installed, for AVX2, AVX-512 and AVX512-FP16. Without a C compiler, or on
another processor, there is no library, and torch's own operations are used.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from segwright.networks.cpu.sources import sources_hash

FOLDER: Final = Path(__file__).parent
_SOURCES: Final = FOLDER / "native"
_LIBRARIES: Final = MappingProxyType({"_kernels_avx2.so": {"AVX2", "AVX512"}, "_kernels_avx512.so": {"AVX512"}})
"""The processors, as torch names them, that each library runs on; narrow vectors, which suit all layers, first."""
_FP16_LIBRARY: Final = "_kernels_avx512fp16.so"
"""The same vectors as AVX-512, but convolutions multiply in float16; used if that precision is wanted."""
_REMEDY: Final = "install a C compiler and then Segwright again (in a checkout: pip install --editable .)"

_GRAIN: Final = 32768
"""Values per kernel call above which several threads are used, as in torch."""

logger = getLogger(__name__)


class KernelError(RuntimeError):
    """A compiled library cannot be used, or one of its kernels refuses its arguments."""


class Library:
    """Kernels for vectors of `lanes` floats, whose convolutions multiply numbers of `dtype`.

    Args:
        path: of the compiled library.

    Raises:
        KernelError: it is missing, not one of ours, or compiled from other sources.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._functions = ctypes.CDLL(str(path))
            self._functions.segwright_convolve_work.restype = self._functions.segwright_call.restype = ctypes.c_int64
            self._functions.segwright_message.restype = self._functions.segwright_sources.restype = ctypes.c_char_p
            self.lanes = int(self._functions.segwright_lanes())
            self.dtype = torch.float16 if self._functions.segwright_product_bytes() == 2 else torch.float32
            compiled_from = self._functions.segwright_sources().decode()
        except OSError as error:
            raise KernelError(f"{path}: {error if path.exists() else 'no such file'}") from error
        except AttributeError as error:
            raise KernelError(f"{path}: not a library of this version of Segwright") from error
        if compiled_from != (sources_hash(_SOURCES) or compiled_from):
            raise KernelError(f"{path}: compiled from other sources than {_SOURCES}")

    def call(self, name: str, values: int, *arguments: Tensor | ctypes.Structure | float | None, work: int = 0) -> None:
        """Call a kernel in as many threads as torch computes with.

        Args:
            name: of the kernel in native/.
            values: number of values that it writes or reads; if small, it runs in the caller's thread.
            arguments: as listed at the kernel; None for no array.
            work: floats that each thread needs for itself.

        Raises:
            KernelError: the kernel does not support these arguments.
        """
        threads = torch.get_num_threads() if values >= _GRAIN else 1
        space = torch.empty(threads * work)
        passed = (_Argument * len(arguments))(*map(_argument, arguments))
        code = self._functions.segwright_call(
            ctypes.byref(ctypes.c_char.in_dll(self._functions, name)), passed, ctypes.c_int64(len(arguments)),
            ctypes.c_void_p(space.data_ptr()), ctypes.c_int64(work), ctypes.c_int64(threads), _gomp_parallel(),
        )  # fmt: skip
        self._require_success(name, code)

    def work_of(self, name: str, shape: ctypes.Structure) -> int:
        """Return the floats of work that each thread needs for `shape`, by the function `name` in native/."""
        floats = int(getattr(self._functions, name)(ctypes.byref(shape)))
        self._require_success(name, max(0, -floats))
        return floats

    def _require_success(self, name: str, code: int) -> None:
        if code:
            raise KernelError(f"{name}: {self._functions.segwright_message(ctypes.c_int64(code)).decode()}")


@lru_cache(maxsize=1)
def libraries() -> tuple[Library, ...]:
    """Return the kernels that this processor can run, the widest vectors first; none without the narrowest."""
    found: list[Library] = []
    for name, capabilities in _LIBRARIES.items():
        if torch.backends.cpu.get_cpu_capability() not in capabilities:
            break
        loaded = _load(name)
        if loaded is None:
            break
        found.insert(0, loaded)
    return tuple(found)


@lru_cache(maxsize=1)
def fp16_libraries() -> tuple[Library, ...]:
    """Return the kernels that convolve in float16; none where the processor does not multiply it twice as fast."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if len(libraries()) < len(_LIBRARIES) or not capabilities.get("avx512_fp16", False):
        return ()
    loaded = _load(_FP16_LIBRARY)
    return () if loaded is None else (loaded,)


def library(*channels: int, fp16: bool = False) -> Library | None:
    """Return the kernels with the widest vectors that divide all these numbers of channels; None if there are none."""
    candidates = fp16_libraries() if fp16 else libraries()
    return next((each for each in candidates if not any(count % each.lanes for count in channels)), None)


def describe_kernels() -> str:
    """Return one line about which kernels this process uses on the CPU, or why it uses torch's operations."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not any(capability in supported for supported in _LIBRARIES.values()):
        return f"CPU kernels: none; torch reports {capability}, they need AVX2"
    widths = [f"{each.lanes} floats" for each in libraries()] + ["fp16"] * len(fp16_libraries())
    return f"CPU kernels: {', '.join(widths) or f'none could be loaded; {_REMEDY}'}"


def _load(name: str) -> Library | None:
    """Load a library that this processor could use; otherwise log why not, once per process since callers cache."""
    try:
        return Library(FOLDER / name)
    except KernelError as error:
        hint = "; float16 needs GCC 12" if name == _FP16_LIBRARY else ""
        logger.warning("slower CPU prediction without compiled kernels: %s; %s%s", error, _REMEDY, hint)
        return None


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
    """Return the OpenMP function by which torch runs its threads; None if its OpenMP is not GNU-compatible."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
