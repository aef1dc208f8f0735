"""nnU-Net's learning rate schedules under its names (nnU-Net behaviour 8.5, 8.10).

`step(epoch)` sets the same rate for all parameter groups.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from segwright.training.optim.schedule import POLY_EXPONENT, poly


class _EpochScheduler(LRScheduler):
    """Sets the rate of an epoch; without a number, `step` counts from 0."""

    def __init__(self, optimizer: Optimizer, current_step: int | None) -> None:
        self.ctr = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        super().__init__(optimizer, -1 if current_step is None else current_step)

    def rate(self, step: int) -> float:
        """Return the learning rate of an epoch."""
        raise NotImplementedError

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of `current_step`, or of the next one."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        rate = self.rate(current_step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = self.get_lr()

    def get_lr(self) -> list[Any]:
        """Return the rates that are set."""
        return [group["lr"] for group in self.optimizer.param_groups]


class PolyLRScheduler(_EpochScheduler):
    """`initial_lr * (1 - epoch / max_steps) ** exponent`; 0 from `max_steps` on."""

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        max_steps: int,
        exponent: float = POLY_EXPONENT,
        current_step: int | None = None,
    ) -> None:
        self.initial_lr = initial_lr
        self.max_steps = max_steps
        self.exponent = exponent
        super().__init__(optimizer, current_step)

    def rate(self, step: int) -> float:
        """Return the learning rate of an epoch."""
        return self.initial_lr * poly(step / self.max_steps, exponent=self.exponent)


class Lin_incr_LRScheduler(_EpochScheduler):
    """Linear increase: `max_lr / max_steps * (1 + epoch)`."""

    start_step = 0

    def __init__(self, optimizer: Optimizer, max_lr: float, max_steps: int, current_step: int | None = None) -> None:
        self.max_lr = max_lr
        self.max_steps = max_steps
        super().__init__(optimizer, current_step)

    def rate(self, step: int) -> float:
        """Return the learning rate of an epoch."""
        return self.max_lr / self.max_steps * (1 + step - self.start_step)


class Lin_incr_offset_LRScheduler(Lin_incr_LRScheduler):
    """The increase of `Lin_incr_LRScheduler`, begun at `start_step`."""

    def __init__(
        self, optimizer: Optimizer, max_lr: float, max_steps: int, start_step: int, current_step: int | None = None
    ) -> None:
        self.start_step = start_step
        super().__init__(optimizer, max_lr, max_steps, current_step)


class PolyLRScheduler_offset(_EpochScheduler):
    """The polynomial decay of `PolyLRScheduler`, begun at `start_step` and ended at `max_steps`."""

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        max_steps: int,
        start_step: int,
        exponent: float = POLY_EXPONENT,
        current_step: int | None = None,
    ) -> None:
        self.initial_lr = initial_lr
        self.max_steps = max_steps
        self.start_step = start_step
        self.exponent = exponent
        super().__init__(optimizer, current_step)

    def rate(self, step: int) -> float:
        """Return the learning rate of an epoch."""
        progress = (step - self.start_step) / (self.max_steps - self.start_step)
        return self.initial_lr * poly(progress, exponent=self.exponent)
