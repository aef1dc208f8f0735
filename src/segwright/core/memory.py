"""Peak memory of this process, and how much it may still take."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CGROUP = Path("/sys/fs/cgroup")


def peak_bytes() -> int | None:
    """Return the largest resident size so far, in bytes; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Let `peak_bytes` count from now on, where the system can (Linux)."""
    with suppress(OSError):
        _CLEAR_REFS.write_text("5", encoding="ascii")


def available_bytes() -> int:
    """Return how much memory this process may still take: what the system has free and what its cgroup leaves.

    Where the system does not say (macOS, Windows), it is half of all memory.
    """
    try:
        text = _MEMINFO.read_text(encoding="ascii")
        free = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pages = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        names: dict[str, int] = getattr(os, "sysconf_names", {})
        return os.sysconf(pages[0]) * os.sysconf(pages[1]) // 2 if all(name in names for name in pages) else 2**32
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii").split()
        pages_of_files = int(stat[stat.index("inactive_file") + 1])  # reclaimed when memory runs out
    except (OSError, ValueError):  # "max", or no cgroup of version 2
        return free
    return max(0, min(free, limit - used + pages_of_files))
