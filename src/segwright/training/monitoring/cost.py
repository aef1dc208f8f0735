"""Estimate what a training takes on this machine, from the time of its first steps: time, memory, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segwright.core.device import peak_device_bytes
from segwright.core.memory import peak_bytes
from segwright.core.resources import format_bytes
from segwright.training.config import TrainConfig
from segwright.training.defaults import num_validation_steps, planned_epochs
from segwright.training.loading.batches import BatchLoader
from segwright.training.monitoring.logbook import duration_text
from segwright.training.optim.ema import WeightAverage
from segwright.training.optim.optimizers import optimizer_tensors

WARM_UP_S: Final = 1.0
"""Time of the steps before those that are timed, at least one: they allocate memory and fill the queue of batches."""

TIMED_S: Final = 3.0
"""Time of the steps whose mean is taken, at least one."""

VALIDATION_SHARE: Final = 1 / 3
"""Time of an online validation step, without gradients, as a share of a training step's."""

_PLACES: Final = ("ram", "device")
"""Where cases are cached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """What a training of one fold takes.

    Attributes:
        step_s: seconds of a training step, with what making its batch adds.
        epoch_s: seconds of an epoch with online validation.
        num_epochs: None if only a time budget limits them.
        memory_bytes: peak of the process, cached cases included; None where the system does not say.
        device_memory_bytes: the same of a CUDA GPU; 0 for other devices.
        checkpoint_bytes: on disk, at most.
    """

    step_s: float
    epoch_s: float
    num_epochs: int | None
    memory_bytes: int | None
    device_memory_bytes: int
    checkpoint_bytes: int

    def describe(self) -> str:
        """Return one line for the log."""
        times = [f"{self.step_s:.3g} s per step", f"{duration_text(self.epoch_s)} per epoch"]
        if self.num_epochs is not None:
            times.append(f"{duration_text(self.num_epochs * self.epoch_s)} for {self.num_epochs} epochs")
        sizes = [] if self.memory_bytes is None else [f"{format_bytes(self.memory_bytes)} of memory"]
        if self.device_memory_bytes:
            sizes.append(f"{format_bytes(self.device_memory_bytes)} of GPU memory")
        sizes.append(f"{format_bytes(self.checkpoint_bytes)} for checkpoints")
        return f"{', '.join(times)}; {', '.join(sizes)}"


class StepTimer:
    """Times training steps one after another, with what lies between them.

    Args:
        now: a monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begin = now()
        self._is_warm = False
        self._count = 0

    def add_step(self, loss: Tensor) -> float | None:
        """Count a step that was started; return the mean seconds of a step once enough were timed.

        Args:
            loss: of the step; waits for it at the first and the last timed step, so that a GPU is done.
        """
        self._count += 1
        if self._now() - self._begin < (TIMED_S if self._is_warm else WARM_UP_S):
            return None
        float(loss)
        end = self._now()
        if self._is_warm:
            return (end - self._begin) / self._count
        self._is_warm, self._begin, self._count = True, end, 0
        return None


class CostEstimate:
    """Callback that logs the cost of a training once its first steps are timed; a shorter epoch says it itself.

    Args:
        after_steps: steps that are not timed, such as those of a trial of threads; nor are those before it is decided
            how steps are computed.
        now: a monotonic clock in seconds.
    """

    def __init__(self, *, after_steps: int = 0, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._steps_left = after_steps
        self._timer = StepTimer(now)
        self._is_done = False

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Begin to time anew, since validation lies between two epochs."""
        self._timer = StepTimer(self._now)

    def on_train_step_end(self, trainer: Any) -> None:
        """Time a step; log the estimate after the last one."""
        if self._is_done:
            return
        is_trial = self._steps_left > 0 or not trainer.execution.is_decided
        self._steps_left -= self._steps_left > 0
        if is_trial:
            self._timer = StepTimer(self._now)
            return
        step_s = self._timer.add_step(trainer.epoch_outputs[-1]["loss"])
        if step_s is None:
            return
        self._is_done = True
        cost = training_cost(
            *(step_s, trainer.config, trainer.network, trainer.optimizer),
            average=trainer.weight_ema,
            loader=trainer.dataloader_train,
            device=trainer.device,
        )
        trainer.print_to_log_file(f"about {cost.describe()}")


def training_cost(
    step_s: float,
    config: TrainConfig,
    network: nn.Module,
    optimizer: Optimizer,
    *,
    average: WeightAverage | None,
    loader: object,
    device: torch.device,
) -> TrainingCost:
    """Return the cost of a training from the time of a step, after some steps.

    Args:
        step_s: seconds of a training step.
        config: the resolved settings.
        network: in training.
        optimizer: after a step, so that it has its state.
        average: of the weights, if any.
        loader: of training batches; what it will still keep in memory is counted if it is a `BatchLoader`.
        device: of the network.
    """
    steps = config.num_iterations_per_epoch
    cached = {place: loader.pending_bytes(place) if isinstance(loader, BatchLoader) else 0 for place in _PLACES}
    peak = peak_bytes()
    on_device = peak_device_bytes(device)
    return TrainingCost(
        step_s=step_s,
        epoch_s=step_s * (steps + VALIDATION_SHARE * num_validation_steps(config, steps)),
        num_epochs=planned_epochs(config),
        memory_bytes=None if peak is None else peak + cached["ram"],
        device_memory_bytes=on_device + cached["device"] if on_device else 0,
        checkpoint_bytes=_checkpoint_bytes(network, optimizer, average),
    )


def _checkpoint_bytes(network: nn.Module, optimizer: Optimizer, average: WeightAverage | None) -> int:
    """Return the bytes of the best checkpoint, and of the latest one and its predecessor with the optimizer's state."""
    weights = _size(network.state_dict().values())
    state = _size(optimizer_tensors(optimizer, network)[0].values())
    averages = 0 if average is None else _size(average.tensors().values())
    return weights + 2 * (weights + state + averages)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
