"""Control the number of threads that torch computes with; torch is imported only when a function needs it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from segwright.core.parallel import available_cpus


def num_threads() -> int:
    """Return the number of threads to compute with: torch's, or the available CPUs where torch is not imported."""
    torch = sys.modules.get("torch")
    return available_cpus() if torch is None else int(torch.get_num_threads())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute a block on the CPU without torch's helper threads, whose number would change the last bits."""
    import torch

    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def single_threaded_pool(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose threads run each torch operation alone, so that they don't fight others for cores.

    torch keeps the number both for the calling thread and for threads to come: it is set in each thread of the pool
    and restored in the calling one. Where torch is not imported, nothing of it is set.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)
    started = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # what a thread asks for before its first operation is forgotten at that operation
        torch.set_num_threads(1)
        started.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)
    for _ in range(count):
        pool.submit(begin)
    started.wait()
    torch.set_num_threads(before)
    return pool


class TorchThreads:
    """Context manager that limits torch's threads once `limit()` is called; until then torch need not be imported."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._before: int | None = None
        self._is_limited = False
        self._lock = threading.Lock()

    def __enter__(self) -> TorchThreads:
        if torch := sys.modules.get("torch"):  # the thread that calls `limit` may see another number
            self._before = torch.get_num_threads()
        return self

    def limit(self) -> None:
        """Apply the limit; thread-safe, may be called repeatedly."""
        import torch

        with self._lock:
            if self._before is None:
                self._before = torch.get_num_threads()
            if not self._is_limited:
                torch.set_num_threads(self._count)
                self._is_limited = True

    def __exit__(self, *exception: object) -> None:
        if self._is_limited:
            import torch

            assert self._before is not None
            torch.set_num_threads(self._before)
