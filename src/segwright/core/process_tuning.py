"""Settings of the whole process that save time: glibc's memory allocator and Python's garbage collector.

Segwright changes none of them by itself, at import or later: an application calls `segwright.tune_process()` once, as
the command line does.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4

_MIN_TRIM_BYTES: Final = 64 * 2**20
"""Trimming takes 0.1 s; reading, normalising or predicting as much takes many times that."""


@dataclass
class _State:
    """What `tune_process` has changed in this process."""

    is_tuned: bool = False
    keeps_freed_memory: bool = False


_state: Final = _State()


def tune_process() -> None:
    """Make training and prediction on the CPU faster by settings of the whole process; they cannot be undone.

    * The memory allocator (glibc's; others are left as they are) reuses freed memory instead of returning it to the
      system. By default it maps every large array anew, and the system clears it page by page, a third of the time
      of a training step on the CPU. Peak memory grows by a few percent; after large images Segwright returns what is
      free.
    * When the process ends, objects are not searched for garbage, which takes most of a second once torch is imported;
      except where Triton is imported, which would print every object that is left.

    Call it once at the start of a program that trains or predicts; more calls do nothing. The command line does so.
    Threads are not touched: beside other programs set `GOMP_SPINCOUNT=3000` before torch is imported, see
    `docs/how-to/training-settings.md`.

    Examples:
        >>> tune_process()  # doctest: +SKIP
    """
    if _state.is_tuned:
        return
    _state.is_tuned = True
    _state.keeps_freed_memory = _keep_freed_memory()
    atexit.register(_skip_last_collection)


def release_freed_memory(num_bytes: int) -> None:
    """Return freed memory to the system, if `tune_process` lets the allocator keep it; else do nothing.

    For after work on arrays whose size does not occur again: the memory that they leave fits nothing that follows.

    Args:
        num_bytes: freed by that work; below 64 MiB they are kept.
    """
    if not _state.keeps_freed_memory or num_bytes < _MIN_TRIM_BYTES:
        return
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Turn the garbage collector off for a block of imports and then on again.

    It would scan a million new objects repeatedly, none of them garbage: a tenth of the time that torch takes to import
    (benchmarks/LOG.md).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _skip_last_collection() -> None:
    if "triton" not in sys.modules:
        gc.freeze()


def _keep_freed_memory() -> bool:
    """Let glibc reuse freed memory; return whether that worked."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
