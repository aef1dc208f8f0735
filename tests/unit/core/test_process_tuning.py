from __future__ import annotations

import gc
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from segwright.core import process_tuning
from segwright.core.process_tuning import gc_paused, release_freed_memory, tune_process

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")


class FakeLibc:
    """Stands for the C library and records what is called; `accepts` is what mallopt answers."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.calls: list[str] = []
        self._accepts = accepts

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append("mallopt")
        return int(self._accepts)

    def malloc_trim(self, pad: int) -> None:
        self.calls.append("malloc_trim")


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tuning, "_state", process_tuning._State())
    monkeypatch.setattr(process_tuning, "atexit", SimpleNamespace(register=lambda function: None))


def use(libc: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tuning, "ctypes", SimpleNamespace(CDLL=lambda name: libc))


def test_the_process_is_tuned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FakeLibc()
    use(libc, monkeypatch)
    tune_process()
    tune_process()
    assert libc.calls == ["mallopt"] * 2


@pytest.mark.parametrize(("num_bytes", "calls"), [(2**30, ["malloc_trim"]), (2**20, [])])
def test_only_much_memory_is_released(num_bytes: int, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FakeLibc()
    use(libc, monkeypatch)
    tune_process()
    libc.calls.clear()
    release_freed_memory(num_bytes)
    assert libc.calls == calls


def test_without_tuning_no_memory_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FakeLibc()
    use(libc, monkeypatch)
    release_freed_memory(2**30)
    assert libc.calls == []


@pytest.mark.parametrize("libc", [object(), FakeLibc(accepts=False)], ids=["no mallopt", "refused"])
def test_an_allocator_without_these_settings_is_left_alone(libc: object, monkeypatch: pytest.MonkeyPatch) -> None:
    use(libc, monkeypatch)
    tune_process()
    assert not process_tuning._state.keeps_freed_memory
    release_freed_memory(2**30)
    assert "malloc_trim" not in getattr(libc, "calls", [])


TUNED = """
import ctypes, sys
from pathlib import Path
import numpy as np

def resident_mib():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024

if sys.argv[1] == "tuned":
    import segwright
    segwright.tune_process()
array = np.ones(2**28, np.uint8)
del array
print(resident_mib())
"""


@needs_glibc
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_glibc_keeps_freed_memory_after_tuning_alone() -> None:
    command = [sys.executable, "-c", TUNED]
    plain, tuned = (
        float(subprocess.run([*command, way], check=True, capture_output=True, text=True).stdout)
        for way in ("plain", "tuned")
    )
    assert plain < 200 < 256 < tuned


def test_nothing_is_printed_at_the_end_where_triton_is_imported() -> None:
    pytest.importorskip("triton")
    program = "import segwright; segwright.tune_process(); import triton"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_collector_is_off_within_and_as_before_afterwards() -> None:
    with pytest.raises(ImportError), gc_paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
