"""How much memory this process has needed."""

from __future__ import annotations

import sys


def peak_bytes() -> int | None:
    """Return the largest resident size so far, in bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
