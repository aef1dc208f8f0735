"""Set the learning rates of a training: by its schedule, or by a scheduler that `configure_optimizers` returned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.user_code import UserCodeError, describe_error
from segwright.training.config import TrainConfig
from segwright.training.defaults import planned_epochs
from segwright.training.hooks.results import Scheduler
from segwright.training.optim.optimizers import LR_FACTOR

EVERY: Final = ("epoch", "step")
"""When the `step` of a scheduler is called: after each epoch, or after each training step."""

_PAIRS: Final = "__pairs__"
"""Key of a mapping whose keys are not text, as JSON: a list of pairs."""

_FLOAT: Final = "__float__"
"""Key of a number that JSON lacks: infinity or NaN."""


class LearningRates:
    """The learning rates of an optimizer's groups during a training.

    Without a scheduler, the rate of a group is the one it was made with, times its factor in `lr_groups`, times the
    schedule's factor. A scheduler alone decides, from the rates that the groups have.

    Args:
        optimizer: its groups have the rates of the start.
        scheduler: as `configure_optimizers` returned it.
        per_step: call `scheduler.step()` after each training step instead of after each epoch.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Scheduler | None = None, *, per_step: bool = False) -> None:
        self.scheduler = scheduler
        self._groups = optimizer.param_groups
        self._initial = [float(group["lr"]) for group in self._groups]
        self._per_step = per_step

    def set(self, factor: float) -> None:
        """Set the rates to those of a factor of the schedule; a scheduler has set its own."""
        if self.scheduler is None:
            for group, initial in zip(self._groups, self._initial, strict=True):
                group["lr"] = initial * factor * group.get(LR_FACTOR, 1.0)

    def now(self) -> list[float]:
        """Return the rate of each group."""
        return [float(group["lr"]) for group in self._groups]

    def end_step(self) -> None:
        """Let a scheduler that counts steps go on."""
        if self.scheduler is not None and self._per_step:
            self._step()

    def end_epoch(self, validation_loss: object) -> None:
        """Let a scheduler that counts epochs go on; `ReduceLROnPlateau` gets the validation loss.

        Raises:
            ConfigError: it needs the loss, and there is none.
        """
        if self.scheduler is None or self._per_step:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if not isinstance(validation_loss, float):
                raise ConfigError(
                    f"ReduceLROnPlateau needs the validation loss, but val_losses is {validation_loss}; log it in "
                    "on_validation_epoch_end, as Trainer's does"
                )
            self._step(validation_loss)
        else:
            self._step()

    def _step(self, *metrics: float) -> None:
        scheduler: Any = self.scheduler
        try:
            scheduler.step(*metrics)
        except (TypeError, ValueError) as error:
            every = "a training step" if self._per_step else "an epoch"
            raise UserCodeError(
                f"{type(scheduler).__name__}.step of the scheduler from configure_optimizers failed after {every}: "
                f"{describe_error(error)}; make it for as many steps as the training has"
            ) from error

    def state(self) -> dict[str, Any]:
        """Return the state as JSON: the numbers of each group, and the scheduler's state.

        Raises:
            ConfigError: the scheduler's state has values that JSON cannot hold.
        """
        groups = [{key: value for key, value in group.items() if _is_number(value)} for group in self._groups]
        if self.scheduler is None:
            return {"groups": groups}
        name = type(self.scheduler).__name__
        return {"groups": groups, "scheduler": _to_json(self.scheduler.state_dict(), f"{name}.state_dict()")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore `state()`; of checkpoints that have none, nothing.

        Raises:
            ModelError: it is of another optimizer or scheduler.
        """
        groups = state.get("groups", [])
        if groups and len(groups) != len(self._groups):
            raise ModelError(
                f"the checkpoint has {len(groups)} parameter groups, the optimizer {len(self._groups)}; resume with "
                "the configure_optimizers that it was started with"
            )
        for group, values in zip(self._groups, groups, strict=False):
            group.update(values)
        if ("scheduler" in state) != (self.scheduler is not None) and groups:
            raise ModelError("the checkpoint and configure_optimizers differ in whether they have a scheduler")
        if self.scheduler is not None and "scheduler" in state:
            before = vars(self.scheduler)
            after = {
                key: Counter(value) if isinstance(before.get(key), Counter) else value
                for key, value in _from_json(state["scheduler"]).items()
            }
            self.scheduler.load_state_dict(after)


def make_rates(optimizer: Optimizer, scheduler: Scheduler | None, every: str, config: TrainConfig) -> LearningRates:
    """Return the learning rates of an optimizer, after checking that the scheduler can be stepped so.

    Args:
        optimizer: as `configure_optimizers` returned it, as the scheduler.
        scheduler: None: the schedule decides.
        every: `scheduler_steps` of the trainer class.
        config: the settings.

    Raises:
        ConfigError: it cannot.
    """
    if every not in EVERY:
        raise ConfigError(f"scheduler_steps = {every!r}: expected 'epoch' or 'step'")
    if isinstance(scheduler, ReduceLROnPlateau) and every == "step":
        raise ConfigError(
            f"scheduler_steps = 'step', but {type(scheduler).__name__} needs the validation loss, which is known after "
            "each epoch; set scheduler_steps = 'epoch'"
        )
    num_epochs = planned_epochs(config)
    if isinstance(scheduler, OneCycleLR) and num_epochs is not None:
        needed = num_epochs * (config.num_iterations_per_epoch if every == "step" else 1)
        if scheduler.total_steps < needed:
            product = "num_epochs * num_iterations_per_epoch" if every == "step" else "num_epochs"
            raise ConfigError(
                f"OneCycleLR has total_steps = {scheduler.total_steps}, but scheduler_steps = '{every}', so that it is "
                f"stepped {needed} times; make it with total_steps={product}"
            )
    return LearningRates(optimizer, scheduler, per_step=every == "step")


def rate_notes(config: TrainConfig, rates: LearningRates, *, is_own: bool) -> tuple[str, ...]:
    """Return lines about rates that the settings do not tell.

    Args:
        config: the settings.
        rates: at the start.
        is_own: whether the trainer has a `configure_optimizers` of its own.

    Raises:
        ConfigError: a schedule is set, but a scheduler decides.
    """
    shown = ", ".join(f"{rate:g}" for rate in rates.now())
    if rates.scheduler is not None:
        name = type(rates.scheduler).__name__
        if {"schedule", "warmup_epochs", "warmup_share"} & config.model_fields_set:
            raise ConfigError(
                f"schedule = {config.schedule} is set, but configure_optimizers returned a {name}, which decides the "
                "learning rate; return the optimizer alone, or leave out the schedule"
            )
        return (f"learning rates {shown}, then as {name} of configure_optimizers decides",)
    if all(rate == config.initial_lr for rate in rates.now()):
        return ()
    source = "configure_optimizers" if is_own else f"optimizer {config.optimizer}"
    unused = f"; initial_lr = {config.initial_lr:g} has no effect" if "initial_lr" in config.model_fields_set else ""
    return (f"learning rates {shown} of {source}, times the schedule '{config.schedule}'{unused}",)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_json(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _to_json(each, f"{place}['{key}']") for key, each in value.items()}
        return {_PAIRS: [[_to_json(key, place), _to_json(each, f"{place}[{key}]")] for key, each in value.items()]}
    if isinstance(value, Sequence):
        return [_to_json(each, f"{place}[{index}]") for index, each in enumerate(value)]
    raise ConfigError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold; a scheduler's state may have numbers, "
        "text, lists and dicts"
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    if value.keys() == {_PAIRS}:
        return {_from_json(key): _from_json(each) for key, each in value[_PAIRS]}
    return {key: _from_json(each) for key, each in value.items()}
