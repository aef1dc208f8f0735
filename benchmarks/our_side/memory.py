"""How much memory a block of code needs beyond what the process had before (Linux)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PEAK_RESET = "5"
"""Written to clear_refs, it sets the peak back to what is resident now (proc(5))."""


def resident_mib(key: str = "VmRSS") -> float:
    """Return a line of /proc/self/status; VmHWM is the peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


@contextmanager
def extra_memory(said: dict[str, float]) -> Iterator[None]:
    """Put the peak of the block, less what was resident before it, into `said["extra_mib"]`."""
    Path("/proc/self/clear_refs").write_text(_PEAK_RESET)
    before = resident_mib()
    yield
    said["extra_mib"] = round(resident_mib("VmHWM") - before, 1)
