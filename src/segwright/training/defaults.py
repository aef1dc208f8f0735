"""Resolve settings that depend on plan, device and time budget, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from segwright.core.device import compute_dtype
from segwright.data.plan import Configuration
from segwright.networks.mednext.sizes import NAME as MEDNEXT
from segwright.training.clock import Clock
from segwright.training.config import TrainConfig, changed

CPU_BUDGET_BATCH_SIZE = 2
"""Batch size of a run with a time budget on a CPU, where the time of a step is proportional to it. Origin: ten-minute
runs of a prototype on Hippocampus 3d_fullres, 2 cores: 0.857 mean foreground Dice at batch 2, 0.839 at the plan's 9."""

SHORT_BUDGET_S = 3600.0
SHORT_BUDGET_MOMENTUM = 0.95
"""Momentum of a CPU run with a budget of at most an hour: nnU-Net's 0.99 averages over too many of its few steps.
Origin: 400 steps at batch 2 on Hippocampus 3d_fullres, fold 0, one seed each: 0.831 mean foreground Dice at
0.95, 0.820 at 0.99, 0.819 at 0.9."""

BUDGET_OPTIMIZER: Mapping[str, object] = MappingProxyType(
    {"optimizer": "adamw", "initial_lr": 3e-3, "schedule": "warmup+poly"}
)
"""Settings of the optimizer with a plan for a time budget: in few steps, SGD at nnU-Net's 0.01 learns too little.
Origin: 1000 steps of 8 patches in 2D, fold 0, one seed each, mean foreground Dice of SGD with momentum 0.95, of AdamW
at 0.001, and of AdamW at 0.003 after a warm-up: ACDC 0.776, 0.853, 0.869; DRIVE 0.776, 0.811, 0.819; SpinalCord 0.887,
0.872, 0.921."""

MEDNEXT_OPTIMIZER: Mapping[str, object] = MappingProxyType(
    {"optimizer": "adamw", "initial_lr": 1e-3, "optimizer_kwargs": {"eps": 1e-4}}
)
"""Settings of the optimizer for MedNeXt, those of the paper's trainers (github.com/MIC-DKFZ/MedNeXt); with an eps of
1e-8 weights can become NaN in fp16."""

_SGD_SETTINGS = ("momentum", "nesterov")
_OPTIMIZER_SETTINGS = {*BUDGET_OPTIMIZER, "optimizer_kwargs", *_SGD_SETTINGS, "weight_decay"}

VALIDATION_SHARE = 0.1
"""Online validation steps per training step of an epoch under a budget; a step without gradient costs about a third."""

BUDGET_SAVE_INTERVAL_S = 60.0
"""Largest age of the latest checkpoint under a time budget, in seconds."""

INITIAL_GRADIENT_SCALE = 2.0**16
"""First factor of the loss in fp16: torch's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """The resolved settings of a run, and the reasons why they differ from the defaults."""

    config: TrainConfig
    notes: tuple[str, ...]


def resolve_config(
    config: TrainConfig, configuration: Configuration, device: torch.device, *, has_own_optimizer: bool = False
) -> ResolvedConfig:
    """Fill in the settings that depend on plan, device and budget, and say why they differ from the defaults.

    Args:
        config: the settings that were given.
        configuration: of the plan.
        device: that trains.
        has_own_optimizer: whether a trainer's `configure_optimizers` makes the optimizer.
    """
    values: dict[str, object] = {}
    notes: list[str] = []
    if config.batch_size is None:
        values["batch_size"] = configuration.batch_size
        is_cut = config.budget_s is not None and device.type == "cpu" and not is_fitted(config, configuration)
        if is_cut and configuration.batch_size > CPU_BUDGET_BATCH_SIZE:
            values["batch_size"] = CPU_BUDGET_BATCH_SIZE
            notes.append(
                f"batch size {CPU_BUDGET_BATCH_SIZE} instead of the plan's {configuration.batch_size}: on a CPU with a "
                "time budget, more but smaller steps reach a higher Dice; set the batch size to override"
            )
    optimizer, reason = _optimizer_values(config, configuration, device, has_own_optimizer=has_own_optimizer)
    values |= optimizer
    notes += [reason] if reason else []
    if config.batch_dice is None:
        values["batch_dice"] = configuration.batch_dice
    return ResolvedConfig(config=changed(config, **values), notes=tuple(notes))


def trains_mednext(config: TrainConfig, configuration: Configuration) -> bool:
    """Return whether the network that settings and plan name is MedNeXt."""
    return (configuration.architecture.network_class_name if config.network is None else config.network) == MEDNEXT


def is_fitted(config: TrainConfig, configuration: Configuration) -> bool:
    """Return whether a training has a time budget, and a plan that was made for one."""
    return config.budget_s is not None and configuration.time_budget_s is not None


def num_validation_steps(config: TrainConfig, training_steps: int) -> int:
    """Return the number of online validation steps after an epoch of `training_steps`."""
    if config.budget_s is None:
        return config.num_val_iterations_per_epoch
    return max(1, min(config.num_val_iterations_per_epoch, round(VALIDATION_SHARE * training_steps)))


def planned_epochs(config: TrainConfig) -> int | None:
    """Return the number of epochs of a run; None if only a time budget limits it."""
    if config.budget_s is None or "num_epochs" in config.model_fields_set:
        return config.num_epochs
    return None


def make_clock(config: TrainConfig, *, now: Callable[[], float]) -> Clock:
    """Return the clock of a run; `now` is a monotonic clock in seconds."""
    return Clock(num_epochs=planned_epochs(config), budget_s=config.budget_s, now=now)


def make_grad_scaler(config: TrainConfig, device: torch.device, *, num_processes: int) -> torch.amp.GradScaler | None:
    """Return the loss scaler of a training in fp16; None in other precisions.

    The gradients of `num_processes` are averaged after the backward pass, in which each is larger by that factor: a
    scale smaller by it keeps them in the range that they have in one process.
    """
    if compute_dtype(device, config.precision) != torch.float16:
        return None
    return torch.amp.GradScaler(device.type, init_scale=INITIAL_GRADIENT_SCALE / num_processes)


def describe_run(config: TrainConfig, configuration: Configuration, num_cases: int, device: torch.device) -> str:
    """Return length, number of cases, batch size, patch and device of a run for the log."""
    length = f"{config.num_epochs} epochs" if config.budget_s is None else f"{config.budget_s:.0f} s"
    batch = f"batch size {config.batch_size}, patch {configuration.patch_size}"
    return f"{length}, {num_cases} cases, {batch}, on {device}"


def save_interval_s(config: TrainConfig) -> float:
    """Return the longest time between two saves."""
    return config.save_interval_s if config.budget_s is None else min(config.save_interval_s, BUDGET_SAVE_INTERVAL_S)


def _optimizer_values(
    config: TrainConfig, configuration: Configuration, device: torch.device, *, has_own_optimizer: bool
) -> tuple[Mapping[str, object], str]:
    """Return settings of the optimizer that were not given, and why they differ from the defaults."""
    chosen = _OPTIMIZER_SETTINGS & config.model_fields_set
    if is_fitted(config, configuration) and not chosen and not has_own_optimizer:
        why = "better for the few steps of a plan for a time budget; set one of them to override"
        return BUDGET_OPTIMIZER, f"{_differences(config, BUDGET_OPTIMIZER)}: {why}"
    if trains_mednext(config, configuration) and not has_own_optimizer and not chosen & {"optimizer", *_SGD_SETTINGS}:
        values = {name: value for name, value in MEDNEXT_OPTIMIZER.items() if name not in chosen}
        return values, f"{_differences(config, values)}: as published for MedNeXt; set the optimizer to override"
    is_short = config.budget_s is not None and config.budget_s <= SHORT_BUDGET_S and device.type == "cpu"
    if is_short and config.optimizer == "sgd" and "momentum" not in chosen:
        return {"momentum": SHORT_BUDGET_MOMENTUM}, (
            f"momentum {SHORT_BUDGET_MOMENTUM} instead of {config.momentum}: better for CPU runs of at most an hour; "
            "set the momentum to override"
        )
    return {}, ""


def _differences(config: TrainConfig, values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value} instead of {getattr(config, name)}" for name, value in values.items())
