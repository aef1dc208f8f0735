"""Measure the extra memory that a block of code needs (Linux)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PEAK_RESET = "5"
"""Value that resets the peak to the resident size when written to clear_refs (proc(5))."""


def resident_mib(key: str = "VmRSS") -> float:
    """Return a field of /proc/self/status in MiB; VmHWM is the peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


@contextmanager
def extra_memory(result: dict[str, float]) -> Iterator[None]:
    """Store the peak of the block minus the resident size before it in `result["extra_mib"]`."""
    Path("/proc/self/clear_refs").write_text(_PEAK_RESET)
    before = resident_mib()
    yield
    result["extra_mib"] = round(resident_mib("VmHWM") - before, 1)
