"""Measure how long training steps wait for their batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import torch
from torch import cuda

from segwright.core.device import CUDA
from segwright.training.loading.batches import Batch

MAX_STEPS_AHEAD: Final = 2
"""Steps that the host may give a GPU before it has begun the first of them. More would hold the memory of as many
batches: to start a step takes the host less time than the GPU needs for it."""


class Stopwatch(Protocol):
    """Adds up the time between `start` and `stop`; a `start` without `stop` does not count."""

    def start(self) -> None:
        """Begin a wait."""

    def stop(self) -> None:
        """End it."""

    def total_s(self) -> float:
        """Return the sum in seconds."""
        ...


class HostStopwatch:
    """Measures the time in which the host waits.

    Args:
        now: a monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begin = 0.0
        self._total_s = 0.0

    def start(self) -> None:
        """Begin a wait."""
        self._begin = self._now()

    def stop(self) -> None:
        """End it."""
        self._total_s += self._now() - self._begin

    def total_s(self) -> float:
        """Return the sum in seconds."""
        return self._total_s


class GpuStopwatch:
    """Measures the time in which a GPU has nothing to do because it, or the host, waits for a batch.

    Reading an event makes the host wait until the GPU has reached it, here `MAX_STEPS_AHEAD` steps later.

    Args:
        device: a CUDA GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin: cuda.Event | None = None
        self._pending: deque[tuple[cuda.Event, cuda.Event]] = deque()
        self._total_ms = 0.0

    def start(self) -> None:
        """Begin a wait, when the GPU has finished what it was given."""
        self._begin = self._event()

    def stop(self) -> None:
        """End it, when the GPU has what it waits for."""
        assert self._begin is not None, "start comes first"
        self._pending.append((self._begin, self._event()))
        if len(self._pending) > MAX_STEPS_AHEAD:
            self._read_oldest()

    def total_s(self) -> float:
        """Return the sum in seconds."""
        while self._pending:
            self._read_oldest()
        return self._total_ms / 1000

    def _event(self) -> cuda.Event:
        event = cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(cuda.current_stream(self._device))
        return event

    def _read_oldest(self) -> None:
        begin, end = self._pending.popleft()
        end.synchronize()
        self._total_ms += begin.elapsed_time(end)


class TimedBatches(Iterator[Batch]):
    """The batches of an epoch, and how long its steps waited for them.

    Args:
        batches: are passed on.
        stopwatch: measures the wait.
    """

    def __init__(self, batches: Iterator[Batch], stopwatch: Stopwatch) -> None:
        self._batches = batches
        self._stopwatch = stopwatch
        self._count = 0

    def __next__(self) -> Batch:
        """Return the next batch."""
        self._stopwatch.start()
        batch = next(self._batches)
        self._stopwatch.stop()
        self._count += 1
        return batch

    @property
    def mean_wait_s(self) -> float:
        """Mean wait per batch in seconds, 0 without a batch."""
        return self._stopwatch.total_s() / max(self._count, 1)


def stopwatch(device: torch.device) -> Stopwatch:
    """Return the stopwatch for batches that are used on a device."""
    return GpuStopwatch(device) if device.type == CUDA else HostStopwatch()
