"""When Python's garbage collector may rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_rest() -> Iterator[None]:
    """Import modules within: the collector would look at a million new objects again and again, none of them garbage.

    A tenth of the time that torch takes (benchmarks/LOG.md).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
