"""The learning rates of a trainer file: stepped as nnU-Net does, at the start of an epoch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from segwright.core.errors import ConfigError
from segwright.training.optim.rates import LearningRates
from segwright.training.trainer import Trainer


class RunScheduler:
    """The schedule of our trainer's settings, as the scheduler of a trainer file."""

    def __init__(self, run: Trainer) -> None:
        self._run = run
        self.last_epoch = 0

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of the training's current epoch."""
        self.last_epoch = self._run.current_epoch if epoch is None else epoch
        self._run._set_learning_rates()

    def get_last_lr(self) -> list[float]:
        """Return the rate of each parameter group."""
        return [float(group["lr"]) for group in self._run.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the rate depends on the epoch alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


class FileRates(LearningRates):
    """Rates that the scheduler of a trainer file decides, or none, then the optimizer's own; saved and resumed.

    Args:
        optimizer: of the file.
        scheduler: of the file.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any) -> None:
        super().__init__(optimizer, scheduler)

    def set(self, factor: float) -> None:
        """Do nothing: our schedule does not decide."""

    def begin_epoch(self, epoch: int, validation_loss: object) -> None:
        """Step the scheduler to an epoch; `ReduceLROnPlateau` gets the last loss, unless the file has stepped it."""
        scheduler: Any = self.scheduler
        if scheduler is None:
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            if scheduler.last_epoch < epoch and isinstance(validation_loss, float):
                scheduler.step(validation_loss)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises against `step(epoch)`
            if inspect.signature(scheduler.step).parameters:
                scheduler.step(epoch)
            elif epoch > 0:
                scheduler.step()

    def end_epoch(self, validation_loss: object) -> None:
        """Do nothing: it is stepped at the start of the next epoch."""

    def state(self) -> dict[str, Any]:
        """Return the state as JSON; without the scheduler's if it has none or JSON cannot hold it."""
        scheduler = self.scheduler
        try:
            return super().state()
        except (ConfigError, AttributeError):
            self.scheduler = None
            return super().state()
        finally:
            self.scheduler = scheduler

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore `state()`."""
        scheduler = self.scheduler
        if "scheduler" not in state:
            self.scheduler = None
        try:
            super().restore(state)
        finally:
            self.scheduler = scheduler
