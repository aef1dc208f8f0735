"""Run functions over many items in threads, for work that releases the interpreter lock; never in child processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import wraps
from math import ceil
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from segwright.core.errors import SegwrightError
from segwright.core.log import progress
from segwright.core.resources import resource_error

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_IMPORTED_BY: Final = os.getpid()


def available_cpus() -> int:
    """Return how many CPUs this process may use: by its affinity mask and its cgroup quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return affinity
    return affinity if quota == "max" else max(1, min(affinity, ceil(int(quota) / int(period))))


def map_threads(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int | None = None,
    describe: Callable[[T], str] = str,
    title: str = "",
) -> list[R]:
    """Apply `function` to every item in threads and return the results in the order of the items.

    The first failure stops the rest. A `SegwrightError` is raised as it is; anything else is chained to an error
    that names the item through `describe`. With a `title`, progress is shown.
    """
    workers = available_cpus() if workers is None else max(1, workers)
    with ThreadPoolExecutor(max_workers=min(workers, max(1, len(items)))) as pool:
        futures = {pool.submit(function, item): index for index, item in enumerate(items)}
        results: dict[int, R] = {}
        try:
            for future in progress(as_completed(futures), title=title, total=len(items)):
                index = futures[future]
                results[index] = _result_of(future.result, lambda index=index: describe(items[index]))  # type: ignore[misc]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [results[index] for index in range(len(items))]


def fork_safe(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` run in a process that was forked, as `multiprocessing` does on Linux, after torch was used.

    The child inherits OpenMP's list of threads but not the threads: the thread that forked would wait for them forever
    in its first parallel loop. Any other thread gets threads of its own, so the function runs in one.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if os.getpid() == _IMPORTED_BY or threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        with ThreadPoolExecutor(1, "segwright-fork") as pool:
            return pool.submit(function, *args, **kwargs).result()

    return wrapped


def _result_of(result: Callable[[], R], name: Callable[[], str]) -> R:
    try:
        return result()
    except SegwrightError:
        raise
    except Exception as error:
        if found := resource_error(error):
            raise type(found)(f"{name()}: {found}") from error
        raise RuntimeError(f"{name()}: {type(error).__name__}: {error}") from error
