"""Measure training time, and decide from epochs and time budget when an epoch and the training end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BUDGET_EPOCHS = 25
"""Number of epochs that a time budget is divided into, so that curves and checkpoints stay useful."""

MIN_EPOCH_SHARE = 0.5
"""A last epoch shorter than this share of a normal one is not started; the previous one continues to the end."""

FIRST_RESERVE_S = 2.0
"""Time reserved for the last validation and checkpoint until both have been measured, in seconds."""

MAX_RESERVE_SHARE = 0.1
"""Largest share of the budget that is reserved."""


class Clock:
    """Measures training time, including that before a resume, and what is left of epochs and budget.

    Args:
        num_epochs: length of the training, None if only the budget limits it.
        budget_s: seconds of training, None without a budget.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self, *, num_epochs: int | None, budget_s: float | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_epochs = num_epochs
        self.budget_s = budget_s
        self.before_s = 0.0
        self._now = now
        self._start: float | None = None
        self._epoch_start_s = 0.0
        self._steps = 0
        self._durations_s: dict[str, float] = {}
        self._is_ended = False

    def start(self) -> None:
        """Start the clock; `before_s` is the training time before a resume, in seconds."""
        self._start = self._now()

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._start is not None

    def stop(self) -> None:
        """Stop the clock."""
        self.before_s = self.elapsed_s
        self._start = None

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far."""
        return self.before_s + (0.0 if self._start is None else self._now() - self._start)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Measure the time of the block (`validation` or `save`); as much is reserved at the end of the budget."""
        begin = self._now()
        yield
        self._durations_s[what] = self._now() - begin

    @property
    def reserve_s(self) -> float:
        """Seconds of the budget that are reserved for validation and checkpoint after the last step."""
        if self.budget_s is None:
            return 0.0
        measured = sum(self._durations_s.values()) if len(self._durations_s) > 1 else FIRST_RESERVE_S
        return min(measured, MAX_RESERVE_SHARE * self.budget_s)

    def progress(self, epoch: int) -> float:
        """Return the progress of the training at the start of `epoch`, by epochs or time, from 0 to 1."""
        by_epochs = 0.0 if self.num_epochs is None else epoch / self.num_epochs
        by_time = 0.0 if self.budget_s is None else self.elapsed_s / (self.budget_s - self.reserve_s)
        return min(max(by_epochs, by_time), 1.0)

    def begin_epoch(self) -> None:
        """Start an epoch."""
        self._epoch_start_s = self.elapsed_s
        self._steps = 0

    def end_step(self) -> None:
        """Count a step."""
        self._steps += 1

    def end_training(self) -> None:
        """End the epoch and the training now."""
        self._is_ended = True

    def is_over(self, epoch: int) -> bool:
        """Return whether the training is over before `epoch`; the first epoch always starts."""
        if self._is_ended:
            return True
        return epoch > 0 and (self._is_out_of_time or (self.num_epochs is not None and epoch >= self.num_epochs))

    @property
    def epoch_is_over(self) -> bool:
        """Whether the epoch has used its share of the budget; an epoch has at least one step."""
        if self._is_ended:
            return True
        if self.budget_s is None or self._steps == 0:
            return False
        if self._is_out_of_time:
            return True
        slice_s = self.budget_s / BUDGET_EPOCHS
        left_s = self.budget_s - self.reserve_s - self.elapsed_s
        return self.elapsed_s - self._epoch_start_s >= slice_s and left_s >= MIN_EPOCH_SHARE * slice_s

    def left_s(self, epochs: float) -> float:
        """Return the estimated seconds left after `epochs` epochs, which is above 0 and may be fractional."""
        limits = []
        if self.budget_s is not None:
            limits.append(self.budget_s - self.elapsed_s)
        if self.num_epochs is not None:
            limits.append(self.elapsed_s / epochs * (self.num_epochs - epochs))
        return max(min(limits), 0.0)

    @property
    def _is_out_of_time(self) -> bool:
        """Whether another step would end after the budget."""
        if self.budget_s is None:
            return False
        step_s = (self.elapsed_s - self._epoch_start_s) / self._steps if self._steps else 0.0
        return self.elapsed_s + step_s > self.budget_s - self.reserve_s


class Timer:
    """Reports when an interval has passed since the last reset.

    Args:
        interval_s: length of the interval in seconds.
        now: a monotonic clock in seconds.
    """

    def __init__(self, interval_s: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self.interval_s = interval_s
        self._now = now
        self._last = now()

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed."""
        return self._now() - self._last >= self.interval_s

    def reset(self) -> None:
        """Restart the interval."""
        self._last = self._now()
