"""The compiled library beside its kernels."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from segwright.core.device import keep_freed_memory
from segwright.networks import compiled

VALUES = 2**21
SMALL = range(24, 120, 16)
"""Bytes of what glibc cuts off an aligned block."""


@pytest.mark.skipif(compiled.library() is None, reason="the kernels are not compiled for this processor")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_an_array_finds_the_memory_of_one_of_its_size() -> None:
    keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    held = [libc.malloc(size) for size in SMALL for _ in range(8)]  # so that the thread's cache has room
    first, neighbour = torch.empty(VALUES), libc.malloc(2**20)
    address = first.data_ptr()
    del first
    compiled.rejoin_freed_memory()
    assert torch.empty(VALUES).data_ptr() == address
    for block in (neighbour, *held):
        libc.free(block)


def test_memory_is_rejoined_only_where_there_is_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: None)
    compiled.rejoin_freed_memory()
