"""Prefetch batches: threads make them ahead of the training steps, in order, within a memory limit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from typing import Final, Protocol

import torch
from torch import nn

from segwright.core.device import CPU
from segwright.core.parallel import available_cpus
from segwright.core.torch_threads import single_threaded_pool
from segwright.training.loading.abort import StepAborter
from segwright.training.loading.batches import Batch
from segwright.training.loading.streams import Staged, batch_stream
from segwright.training.loading.waiting import TimedBatches, stopwatch

logger = getLogger(__name__)

AHEAD_BYTES: Final = 512 * 2**20
"""Memory limit of prefetched batches; one is always allowed."""

_MAX_AHEAD: Final = 12
_MAX_THREADS: Final = 6

THREAD_NAME: Final = "segwright-batches"


class Loader(Protocol):
    """Makes the batches; `batches.BatchLoader` is one."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        ...

    @property
    def batch_bytes(self) -> int:
        """Bytes of one batch."""
        ...

    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch of a step."""
        ...


@dataclass(frozen=True, slots=True)
class InlineLoader:
    """A loader whose batches are made between the steps, in the thread that trains.

    For code that draws from global random generators, which a step draws from too.
    """

    inner: Loader

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        return self.inner.device

    @property
    def batch_bytes(self) -> int:
        """Bytes of one batch."""
        return self.inner.batch_bytes

    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch of a step."""
        return self.inner.batch(epoch, step)


def num_threads(device: torch.device) -> int:
    """Return how many threads make batches; only one on the CPU, where the network needs the others."""
    return 1 if device.type == CPU else max(1, min(_MAX_THREADS, available_cpus() - 1))


def num_ahead(batch_bytes: int, threads: int) -> int:
    """Return how many batches may be prefetched, finished or in progress.

    >>> num_ahead(1 << 20, 1), num_ahead(300 << 20, 4), num_ahead(1 << 40, 4)
    (3, 1, 1)
    """
    return max(1, min(_MAX_AHEAD, 2 * threads + 1, AHEAD_BYTES // max(batch_bytes, 1)))


@contextmanager
def prefetched_batches(
    loader: Loader, network: nn.Module, epoch: int, steps: int, *, first_step: int = 0
) -> Iterator[TimedBatches]:
    """Yield an iterator over the batches `first_step ... steps - 1` of an epoch, prefetched by threads.

    It measures how long the steps wait for them.

    An error in one of these threads aborts the forward or backward pass of `network` that is running. The threads end
    with the block.
    """
    with (
        StepAborter(network) as aborter,
        closing(prefetch(loader, epoch, steps, first_step=first_step, on_error=aborter.abort)) as batches,
    ):
        yield TimedBatches(batches, stopwatch(loader.device))


def prefetch(
    loader: Loader,
    epoch: int,
    steps: int,
    *,
    first_step: int = 0,
    threads: int | None = None,
    ahead: int | None = None,
    on_error: Callable[[BaseException], object] | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches `first_step ... steps - 1` of an epoch; they do not depend on `threads` and `ahead`.

    Those of an `InlineLoader` are made on demand. On a CUDA GPU they are made on a stream of their own, and the
    stream of the steps waits for each when it is taken.

    An error in a thread is logged at once and raised here with the next batch, before the finished batches ahead of it.
    The threads end when the iterator is exhausted, closed or has raised.

    Args:
        loader: makes batches.
        epoch: the epoch.
        steps: number of steps of the epoch.
        first_step: first step of a resumed epoch.
        threads: number of threads; by default it depends on the device.
        ahead: number of prefetched batches; by default what `AHEAD_BYTES` allows.
        on_error: called with the first error, in the thread that raised it.
    """
    if isinstance(loader, InlineLoader):
        for step in range(first_step, steps):
            yield loader.batch(epoch, step)
        return
    count = num_threads(loader.device) if threads is None else threads
    most = num_ahead(loader.batch_bytes, count) if ahead is None else max(ahead, 1)
    pool = single_threaded_pool(min(count, most), THREAD_NAME)
    stream = batch_stream(loader.device)
    waiting: deque[Future[Staged]] = deque()
    has_failed = threading.Event()

    def report_error(made: Future[Staged]) -> None:
        error = None if made.cancelled() else made.exception()
        if error is not None and not has_failed.is_set():
            has_failed.set()
            logger.warning("a prefetched batch cannot be made, so the epoch ends: %s", error)
            if on_error is not None:
                on_error(error)

    try:
        for step in range(first_step, steps):
            waiting.append(pool.submit(stream.make, partial(loader.batch, epoch, step)))
            waiting[-1].add_done_callback(report_error)
            failed = next((each for each in waiting if each.done() and each.exception()), None)
            if failed is not None:
                failed.result()
            if len(waiting) > most:
                yield stream.take(waiting.popleft().result())
        while waiting:
            yield stream.take(waiting.popleft().result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
