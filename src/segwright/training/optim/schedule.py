"""Learning rate schedules as pure functions of the training's progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import user_call
from segwright.training.config import WARMUP_PREFIX, TrainConfig, without_warmup

POLY_EXPONENT = 0.9
"""nnU-Net behaviour 8.5."""

PROBES = (0.0, 0.5, 1.0)
"""Progress at which a schedule is checked before the training starts."""

_CONTRACT = "it is called as fn(progress) -> factor; configure_optimizers of a trainer may return a scheduler of torch"

BUDGET_WARMUP_FIRST = 0.02
"""Factor at the start of a warm-up under a time budget: that of nnU-Net's 50 epochs (nnU-Net behaviour 8.10)."""


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
    rest = without_warmup(name)
    has_warmup = rest is not name
    schedule: Schedule | None = None
    if not rest.startswith(WARMUP_PREFIX):
        schedule = import_reference(rest, kind="schedule") if ":" in rest else SCHEDULES.get(rest)
    if not callable(schedule):
        raise ConfigError(
            f"schedule '{name}' cannot be called; name a function fn(progress) -> factor, or {WARMUP_PREFIX}NAME"
        )
    for progress in PROBES:
        with user_call(schedule, f"schedule '{name}'", contract=_CONTRACT):
            factor = schedule(progress)
        if not (isinstance(factor, int | float) and 0 <= factor < math.inf):
            raise ConfigError(f"schedule '{name}' gives {factor} at progress {progress}, expected a finite factor >= 0")
    epochs = config.warmup_epochs
    if not has_warmup:
        if epochs is not None:
            raise ConfigError(
                f"warmup_epochs {epochs} has no effect with schedule '{name}'; choose '{WARMUP_PREFIX}{name}'"
            )
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
