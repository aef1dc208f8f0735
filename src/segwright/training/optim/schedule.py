"""Learning rate schedules as pure functions of progress, and the clock of a training with its time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import user_call
from segwright.training.config import WARMUP, TrainConfig

POLY_EXPONENT = 0.9
"""nnU-Net behaviour 8.5."""

PROBES = (0.0, 0.5, 1.0)
"""Progress at which a schedule is checked before the training starts."""

BUDGET_WARMUP_FIRST = 0.02
"""Factor at the start of a warm-up under a time budget: that of nnU-Net's 50 epochs (nnU-Net behaviour 8.10)."""

BUDGET_EPOCHS = 25
"""Number of epochs that a time budget is divided into, so that curves and checkpoints stay useful."""

SHORTEST_EPOCH = 0.5
"""A last epoch shorter than this share of a normal one is not started; the previous one is extended to the end."""

FIRST_RESERVE_S = 2.0
"""Time reserved for the last validation and checkpoint until both have been measured, in seconds."""

LARGEST_RESERVE = 0.1
"""Largest share of the budget that is reserved."""


def poly(progress: float, *, exponent: float = POLY_EXPONENT) -> float:
    """Return the factor of the learning rate at `progress` in [0, 1].

    >>> round(0.01 * poly(500 / 1000), 7)
    0.0053589
    """
    return float((1.0 - min(max(progress, 0.0), 1.0)) ** exponent)


def cosine(progress: float) -> float:
    """Return the factor of the learning rate at `progress` in [0, 1]: half a cosine from 1 to 0.

    >>> round(cosine(0.5), 7)
    0.5
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


Schedule = Callable[[float], float]
"""Maps the progress of the training, 0 to 1, to the factor of the initial learning rate, 0 or more."""

SCHEDULES: Registry[Schedule] = Registry("schedule")
SCHEDULES.register("poly", poly)
SCHEDULES.register("cosine", cosine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """A linear warm-up followed by another schedule.

    Attributes:
        share: share of the training for the warm-up.
        first: factor at the start of the training.
        last: factor at the end of the warm-up.
        then: schedule over the rest.
    """

    share: float
    first: float
    last: float
    then: Schedule

    def __call__(self, progress: float) -> float:
        """Return the factor of the learning rate at `progress` in [0, 1]."""
        if progress >= self.share:
            return self.then((progress - self.share) / (1.0 - self.share))
        return self.first + (self.last - self.first) * progress / self.share


def build_schedule(config: TrainConfig, num_epochs: int | None) -> Schedule:
    """Return the schedule that the settings name.

    `warmup+NAME` increases the rate for `warmup_epochs` epochs, epoch e at (e + 1) / `warmup_epochs` of the initial
    rate, as nnU-Net 2.8.1's warm-up does (nnU-Net behaviour 8.10), or for `warmup_share` of a budget; NAME follows.

    Args:
        config: the settings.
        num_epochs: length of the training; None: only the budget limits it.

    Raises:
        ConfigError: an unknown schedule, one that returns invalid factors, or an invalid warm-up.
    """
    name = config.schedule
    before, plus, rest = name.rpartition(WARMUP)
    schedule: Schedule = import_reference(rest, kind="schedule") if ":" in rest else SCHEDULES.get(rest)
    if before or not callable(schedule):
        raise ConfigError(
            f"schedule '{name}' cannot be called; name a function fn(progress) -> factor, or {WARMUP}NAME"
        )
    for progress in PROBES:
        with user_call(schedule, f"schedule '{name}'", contract="it is called as fn(progress) -> factor"):
            factor = schedule(progress)
        if not (isinstance(factor, int | float) and 0 <= factor < math.inf):
            raise ConfigError(f"schedule '{name}' gives {factor} at progress {progress}, expected a finite factor >= 0")
    epochs = config.warmup_epochs
    if not plus:
        if epochs is not None:
            raise ConfigError(f"warmup_epochs {epochs} has no effect with schedule '{name}'; choose '{WARMUP}{name}'")
        return schedule
    if config.budget_s is not None or num_epochs is None:
        if epochs is not None:
            raise ConfigError(f"warmup_epochs {epochs}: a budget has no fixed number of epochs; set warmup_share")
        return Warmup(share=config.warmup_share, first=BUDGET_WARMUP_FIRST, last=1.0, then=schedule)
    if epochs is None:
        epochs = min(max(1, round(config.warmup_share * num_epochs)), num_epochs - 1)
    elif epochs >= num_epochs:
        raise ConfigError(f"warmup_epochs {epochs} must be below num_epochs, {num_epochs}; shorten the warm-up")
    if epochs == 0:
        return schedule
    return Warmup(share=epochs / num_epochs, first=1 / epochs, last=1 + 1 / epochs, then=schedule)


class Clock:
    """Measures training time, also of earlier parts of a resumed run, and what is left of epochs and budget.

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
        self._costs_s: dict[str, float] = {}
        self._is_ended = False

    def start(self) -> None:
        """Start the clock; `before_s` are the seconds of earlier parts."""
        self._start = self._now()

    def stop(self) -> None:
        """Stop the clock."""
        self.before_s = self.elapsed_s
        self._start = None

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far."""
        return self.before_s + (0.0 if self._start is None else self._now() - self._start)

    @contextmanager
    def costing(self, what: str) -> Iterator[None]:
        """Measure the time of the block, `validation` or `save`; it is reserved at the end of the budget."""
        begin = self._now()
        yield
        self._costs_s[what] = self._now() - begin

    @property
    def reserve_s(self) -> float:
        """Seconds of the budget that are reserved for validation and checkpoint after the last step."""
        if self.budget_s is None:
            return 0.0
        measured = sum(self._costs_s.values()) if len(self._costs_s) > 1 else FIRST_RESERVE_S
        return min(measured, LARGEST_RESERVE * self.budget_s)

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
        """End epoch and training now."""
        self._is_ended = True

    def is_over(self, epoch: int) -> bool:
        """Return whether the training is over before `epoch`; the first epoch always starts."""
        if self._is_ended:
            return True
        return epoch > 0 and (self._is_late or (self.num_epochs is not None and epoch >= self.num_epochs))

    @property
    def epoch_is_over(self) -> bool:
        """Whether the epoch has used its share of the budget; an epoch has at least one step."""
        if self._is_ended:
            return True
        if self.budget_s is None or self._steps == 0:
            return False
        if self._is_late:
            return True
        slice_s = self.budget_s / BUDGET_EPOCHS
        left_s = self.budget_s - self.reserve_s - self.elapsed_s
        return self.elapsed_s - self._epoch_start_s >= slice_s and left_s >= SHORTEST_EPOCH * slice_s

    def left_s(self, epochs: float) -> float:
        """Return an estimate of the seconds that are left after `epochs` epochs, which is above 0."""
        limits = []
        if self.budget_s is not None:
            limits.append(self.budget_s - self.elapsed_s)
        if self.num_epochs is not None:
            limits.append(self.elapsed_s / epochs * (self.num_epochs - epochs))
        return max(min(limits), 0.0)

    @property
    def _is_late(self) -> bool:
        """Whether another step would end after the budget."""
        if self.budget_s is None:
            return False
        step_s = (self.elapsed_s - self._epoch_start_s) / self._steps if self._steps else 0.0
        return self.elapsed_s + step_s > self.budget_s - self.reserve_s


class Timer:
    """Tells when an interval has passed.

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
