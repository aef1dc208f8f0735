"""Choose how training steps are computed: plain, compiled or compiled with CUDA graphs, by their results and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from segwright.core.device import can_compile, has_graphs, synchronize
from segwright.core.errors import SegwrightError
from segwright.core.extensions.user_code import describe_error
from segwright.training.config import TrainConfig
from segwright.training.defaults import planned_epochs
from segwright.training.distributed.context import DistributedContext
from segwright.training.execution.compiled import GRAPH_CALLS, compare, compile_loss
from segwright.training.execution.step import (
    FirstBatchCheck,
    LossFunction,
    StepParts,
    StepSettings,
    compute_gradients,
    plain_loss,
    update_weights,
)
from segwright.training.losses.builtin import Outputs

PLAIN_STEPS: Final = 10
TRIAL_STEPS: Final = 30
"""Timed steps of a compiled way; its median is compared with that of `PLAIN_STEPS` plain ones."""

LAUNCH_BOUND: Final = 0.7
"""Share of a step during which the host starts kernels, from which on CUDA graphs are tried."""

MIN_STEPS: Final = 2500
MIN_BUDGET_S: Final = 1800.0
"""Steps, or seconds of a budget, of a training from which on `auto` compiles; an estimate: compiling takes minutes."""

MAX_REASON: Final = 300
"""Characters of an error in the log; the compiler's have pages."""


class CompileLoss(Protocol):
    """Compiles network and loss; `compiled.compile_loss` is one."""

    def __call__(self, parts: StepParts, settings: StepSettings, *, graphs: bool) -> LossFunction:
        """Return the compiled function."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to compute steps.

    Attributes:
        name: for the log.
        graphs: with CUDA graphs.
    """

    name: str
    graphs: bool = False


PLAIN: Final = Way(name="plain")
COMPILED: Final = Way(name="compiled")
GRAPHS: Final = Way(name="CUDA graphs", graphs=True)


@dataclass(slots=True)
class Trial:
    """Seconds of each step, and those of them until the host went on."""

    num_steps: int
    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Seconds of a step."""
        return median(self.seconds)

    @property
    def host_share(self) -> float:
        """Share of the host in them, in which it starts kernels; 1 where the device waits for the host."""
        return median(self.host_seconds) / max(median(self.seconds), 1e-9)


class Execution:
    """Computes training steps in the fastest way that gives the plain result.

    The first steps are plain and timed. Then network and loss are compiled, the results of one batch are compared with
    the plain ones, and `TRIAL_STEPS` steps are timed. Where starting the kernels takes most of a step, CUDA graphs are
    tried in the same manner. An error, a difference or slower steps end a way with one line in the log; the way
    before it is used again, after an error for the same batch.

    Args:
        settings: of the steps.
        ways: compiled ways to try, in this order.
        log: takes a line of the log.
        compile_function: compiles network and loss.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self,
        settings: StepSettings,
        *,
        ways: Sequence[Way] = (),
        log: Callable[[str], object],
        compile_function: CompileLoss = compile_loss,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._ways = tuple(ways)
        self._log = log
        self._compile = compile_function
        self._now = now
        self._begun_with: StepParts | None = None

    @property
    def way(self) -> Way:
        """The way in which steps are computed now."""
        return PLAIN if self._begun_with is None else self._in_use[-1][0]

    @property
    def is_decided(self) -> bool:
        """Whether no further way will be tried."""
        return not self._ways or (self._begun_with is not None and self._trial is None and self._candidate is None)

    def run(self, parts: StepParts, data: Tensor, target: Outputs, check: FirstBatchCheck | None = None) -> Tensor:
        """Update the weights with a batch, and return its loss, on the device; NaN if the step was skipped.

        Args:
            parts: network, loss, optimizer and scaler.
            data: (B, C, *S), on the device.
            target: as the loader makes it, on the device.
            check: of the first batch, whose step is plain.
        """
        if check is not None or not self._ways:
            return self._update(plain_loss(parts, self._settings, check), parts, data, target)
        if not self._has_begun_with(parts):
            self._begin(parts)
        if _hooks(parts.network) != self._hooks:  # the compiled code has those of its own time
            return self._update(plain_loss(parts, self._settings), parts, data, target)
        if self._candidate is not None:
            return self._checked_step(self._candidate, parts, data, target)
        if self._trial is not None:
            return self._timed_step(self._trial, parts, data, target)
        return self._step(parts, data, target)

    def _has_begun_with(self, parts: StepParts) -> bool:
        begun = self._begun_with
        return begun is not None and begun.network is parts.network and begun.loss is parts.loss

    def _begin(self, parts: StepParts) -> None:
        """Begin with plain steps; again if network or loss are others than before."""
        self._begun_with = parts
        self._hooks = _hooks(parts.network)
        self._in_use = [(PLAIN, plain_loss(parts, self._settings))]
        self._seconds: list[float] = []
        self._remaining = [*self._ways]
        self._candidate: Way | None = None
        self._trial: Trial | None = Trial(PLAIN_STEPS)

    def _update(self, function: LossFunction, parts: StepParts, data: Tensor, target: Outputs) -> Tensor:
        loss = compute_gradients(function, parts, data, target, backward_of=self._settings.backward_of)
        return update_weights(loss, parts, self._settings)

    def _step(self, parts: StepParts, data: Tensor, target: Outputs) -> Tensor:
        """Compute a step in the way in use; if that fails, in the way before it."""
        way, function = self._in_use[-1]
        if way is PLAIN:
            return self._update(function, parts, data, target)
        try:
            loss = compute_gradients(function, parts, data, target)
        except SegwrightError:
            raise
        except Exception as error:  # anything that the compiler or its code raises
            reason = _reason(error)
        else:
            return update_weights(loss, parts, self._settings)
        self._in_use.pop()
        self._end_trials(way, reason)
        return self._step(parts, data, target)

    def _timed_step(self, trial: Trial, parts: StepParts, data: Tensor, target: Outputs) -> Tensor:
        synchronize(self._settings.device)
        start = self._now()
        loss = self._step(parts, data, target)
        trial.host_seconds.append(self._now() - start)
        synchronize(self._settings.device)
        trial.seconds.append(self._now() - start)
        if self._trial is trial and len(trial.seconds) == trial.num_steps:
            self._end_trial(trial)
        return loss

    def _end_trial(self, trial: Trial) -> None:
        """Keep the way of a trial if its steps are not slower than those before, and go on to the next way."""
        way, seconds = self.way, trial.median_s
        if self._seconds:
            times = f"{_shown(seconds)} per step instead of {_shown(self._seconds[-1])}"
            if seconds > self._seconds[-1]:
                self._in_use.pop()
                self._end_trials(way, f"slower, {times}")
                return
            self._log(f"{way.name}: on, {times}")
        self._seconds.append(seconds)
        self._trial = None
        self._candidate = self._remaining.pop(0) if self._remaining else None
        if self._candidate is not None and self._candidate.graphs and trial.host_share < LAUNCH_BOUND:
            host = _shown(trial.host_share * seconds)
            self._end_trials(self._candidate, f"starting the kernels takes only {host} of {_shown(seconds)} per step")

    def _checked_step(self, way: Way, parts: StepParts, data: Tensor, target: Outputs) -> Tensor:
        """Compute a plain step, compare its results with those of a new way, and begin the way's trial if equal."""
        try:
            function = self._compile(parts, self._settings, graphs=way.graphs)
            calls = GRAPH_CALLS if way.graphs else 1
            both = compare(function, parts, self._settings, data, target, calls=calls)
        except SegwrightError:
            raise
        except Exception as error:  # anything that the compiler or its code raises
            reason = _reason(error)
        else:
            if both.problem:
                self._end_trials(way, f"wrong result, {both.problem}")
            elif both.is_finite:
                self._candidate, self._trial = None, Trial(TRIAL_STEPS)
                self._in_use.append((way, function))
            return update_weights(both.loss, parts, self._settings)
        self._end_trials(way, reason)
        return self._step(parts, data, target)

    def _end_trials(self, way: Way, reason: str) -> None:
        """Log why a way is not used, and try no further one, since each builds on the one before."""
        self._candidate, self._trial = None, None
        self._log(f"{way.name}: off, {reason}; the training goes on {self.way.name}")


def make_execution(
    config: TrainConfig, device: torch.device, distributed: DistributedContext, *, log: Callable[[str], object]
) -> Execution:
    """Return what computes the steps of a training, as `compile` of the settings says.

    Args:
        config: the resolved settings.
        device: of the network.
        distributed: the processes that share the training; steps of several are plain.
        log: takes a line of the log.
    """
    settings = StepSettings(
        device=device, precision=config.precision, clip_norm=config.clip_norm, backward_of=distributed.backward_of
    )
    is_on = config.compile == "on" or (config.compile == "auto" and can_compile(device) and _is_worthwhile(config))
    if config.compile == "on" and distributed.world_size > 1:
        log(f"compiled: off, {distributed.world_size} processes share the training; it goes on plain")
    if not is_on or distributed.world_size > 1:
        return Execution(settings, log=log)
    return Execution(settings, ways=(COMPILED, GRAPHS) if has_graphs(device) else (COMPILED,), log=log)


def _is_worthwhile(config: TrainConfig) -> bool:
    """Return whether a training is long enough to be compiled, and its steps need not be the same in every run."""
    num_epochs = planned_epochs(config)
    has_time = config.budget_s is None or config.budget_s >= MIN_BUDGET_S
    has_steps = num_epochs is None or num_epochs * config.num_iterations_per_epoch >= MIN_STEPS
    return has_time and has_steps and not config.deterministic


def _hooks(network: nn.Module) -> list[object]:
    """Return all hooks of a network's modules; those that are added later are not in the compiled code."""
    return [
        hook
        for module in network.modules()
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._backward_pre_hooks,
            module._backward_hooks,
        )
        for hook in hooks.values()
    ]


def _reason(error: Exception) -> str:
    text = describe_error(error)
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."


def _shown(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
