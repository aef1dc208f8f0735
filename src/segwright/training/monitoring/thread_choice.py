"""Choose the number of threads of training steps on the CPU by their time, again and again.

Where another program uses one of the cores, each of the many short operations of a step waits until its slowest thread
gets a core: a step of 8 slices of 128x128 took 2 s with two threads and 0.3 s with one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TRIAL_STEPS = 3
"""Steps in a row with each number of threads; the first of them, which starts threads, does not count."""

LONGEST_TRIAL = 3 * TRIAL_STEPS
"""Steps of a trial of all `thread_numbers`, of which there are at most three."""

STEPS_BETWEEN_TRIALS = 100

NOTICEABLE = 1.1
"""More threads are used if steps take this factor longer without them."""


def thread_numbers(most: int) -> tuple[int, ...]:
    """Return the numbers of threads to try, the largest first.

    >>> thread_numbers(8), thread_numbers(2), thread_numbers(1)
    ((8, 4, 1), (2, 1), (1,))
    """
    return tuple(sorted({most, max(1, most // 2), 1}, reverse=True))


@contextmanager
def fastest_threads(callbacks: list[object], *, now: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """Let the steps of a training choose their number of threads; afterwards torch has its former number.

    Args:
        callbacks: of the trainer.
        now: a monotonic clock in seconds.
    """
    before = torch.get_num_threads()
    callbacks.append(ThreadChoice(thread_numbers(before), now=now))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ThreadChoice:
    """Callback that tries numbers of threads on some steps, and keeps the fastest until the next trial.

    Args:
        numbers: of threads, the largest first.
        now: a monotonic clock in seconds.
    """

    def __init__(self, numbers: tuple[int, ...], *, now: Callable[[], float]) -> None:
        self.numbers = numbers
        self._now = now
        self._seconds: dict[int, list[float]] = defaultdict(list)
        self._start = 0.0
        self._step = 0

    def on_train_step_start(self, trainer: Any) -> None:
        """Set the number of threads of a step of a trial."""
        trial, within = divmod(self._step, TRIAL_STEPS)
        if trial < len(self.numbers) and within == 0:
            torch.set_num_threads(self.numbers[trial])
        self._start = self._now()

    def on_train_step_end(self, trainer: Any) -> None:
        """Measure a step of a trial, and choose after the last one."""
        trial, within = divmod(self._step, TRIAL_STEPS)
        if trial < len(self.numbers) and within > 0:
            self._seconds[self.numbers[trial]].append(self._now() - self._start)
        self._step += 1
        if self._step == TRIAL_STEPS * len(self.numbers):
            torch.set_num_threads(self.fastest())
        if self._step >= STEPS_BETWEEN_TRIALS:
            self._step = 0
            self._seconds.clear()

    def fastest(self) -> int:
        """Return the number of threads with the shortest steps; fewer if more gain nothing noticeable."""
        best = {number: min(seconds) for number, seconds in self._seconds.items()}
        shortest = min(best.values())
        return min(number for number, seconds in best.items() if seconds <= NOTICEABLE * shortest)
