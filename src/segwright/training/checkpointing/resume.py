"""Resume a training: restore tensors from a checkpoint, check that it fits, and merge its settings with new ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.core.files.hashing import content_hash
from segwright.data.crossval.splits import Split
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan
from segwright.networks.checkpoint import load_state
from segwright.training.checkpointing.checkpoints import Checkpoint, CheckpointState
from segwright.training.config import CHANGEABLE, TrainConfig
from segwright.training.optim.ema import WeightAverage, split_tensors
from segwright.training.optim.optimizers import restore_optimizer
from segwright.training.optim.rates import LearningRates

SEGWRIGHT: Final = "segwright"
"""Key of a plan's rationale and versions, which do not affect a training."""

IDENTITY_KEYS: Final = ("trainer", "configuration", "fold", "plans_hash", "dataset_hash")
"""Keys of `training_identity` that a checkpoint has too; a training is resumed only if they are equal."""

_CHANGED: Final = {
    "plans_hash": "the plan has changed since",
    "dataset_hash": "labels or channels of dataset.json have changed since",
}


def plan_hash(plan: Plan, configuration: str) -> str:
    """Return a hash of what a plan says about a configuration, without its rationale and other configurations."""
    document = {key: value for key, value in plan.to_json().items() if key != SEGWRIGHT}
    resolved = plan.configuration(configuration).model_dump(mode="json", by_alias=True)
    return content_hash({**document, "configurations": {configuration: resolved}})


def dataset_hash(description: DatasetDescription) -> str:
    """Return a hash of channels and labels; the rest of dataset.json doesn't count."""
    return content_hash(description.meaning())


def training_identity(
    trainer: str,
    plan: Plan,
    configuration: str,
    description: DatasetDescription,
    *,
    fold: int | Literal["all"],
    split: Split,
) -> dict[str, Any]:
    """Return what identifies a training in its records; compared by `require_same_training`."""
    return {
        "trainer": trainer,
        "dataset": plan.dataset_name,
        "plans": plan.plans_name,
        "plans_hash": plan_hash(plan, configuration),
        "dataset_hash": dataset_hash(description),
        "configuration": configuration,
        "fold": fold,
        "cases": {"train": len(split.train), "val": len(split.val)},
    }


def restore_tensors(
    checkpoint: Checkpoint,
    path: Path,
    network: nn.Module,
    optimizer: Optimizer,
    average: WeightAverage | None,
    grad_scaler: torch.amp.GradScaler | None,
    rates: LearningRates,
) -> None:
    """Load the checkpoint at `path` into network, optimiser, weight average, gradient scaler and learning rates.

    Raises:
        ModelError: it belongs to another network.
    """
    state = checkpoint.state
    load_state(network, checkpoint.weights, source=str(path))
    own, averages = split_tensors(checkpoint.optimizer)
    restore_optimizer(optimizer, network, own, state.optimizer_values)
    rates.restore(state.learning_rates)
    if average is not None:
        average.restore(averages)
    if grad_scaler is not None and state.scaler:  # empty if it was disabled
        grad_scaler.load_state_dict(state.scaler)


def require_same_training(state: CheckpointState, identity: Mapping[str, Any], path: Path) -> None:
    """Refuse the checkpoint of another trainer, configuration, fold or plan.

    Raises:
        ModelError: one of them differs.
    """
    saved = state.model_dump()
    for key in IDENTITY_KEYS:
        if saved[key] is not None and saved[key] != identity[key]:
            what = _CHANGED.get(key, f"{key} is {saved[key]}, not {identity[key]}")
            raise ModelError(
                f"{path}: {what}; restore what it was started with, or remove the fold folder to train again"
            )


def resumed_config(
    config: TrainConfig,
    state: CheckpointState,
    path: Path,
    trust: CodeTrust = TRUST_NONE,
    class_values: Collection[str] = (),
) -> TrainConfig:
    """Return the checkpoint's settings, with changeable ones replaced by what was set now.

    Code that only the checkpoint names is imported if `trust` allows it.

    Args:
        config: what was set now.
        state: of the checkpoint.
        path: of the checkpoint.
        trust: code that may be imported.
        class_values: settings of `config` that only the trainer class sets; those of the checkpoint replace them.

    Raises:
        ConfigError: a setting that may not change was set to another value.
        ModelError: the checkpoint names code that may not be imported.
    """
    before = TrainConfig.from_mapping(state.config)
    old, new = before.model_dump(), config.model_dump()
    chosen = config.model_fields_set - set(class_values)
    for key in sorted(chosen - set(CHANGEABLE)):
        if new[key] is not None and new[key] != old[key]:
            raise ConfigError(
                f"{path}: was trained with {key} = {old[key]}, now {new[key]}; resume with the same value, or remove "
                "the fold folder to train again"
            )
    set_now = chosen & set(CHANGEABLE)
    equal = {key for key in config.model_fields_set if new[key] == old[key]}  # it may carry a Python object
    values = {key: new[key] if key in set_now | equal else value for key, value in old.items()}
    resumed = TrainConfig.model_construct(_fields_set={*state.config_set, *set_now}, **values)
    load_references(resumed, trust, source=str(path))
    return resumed


def load_references(config: TrainConfig, trust: CodeTrust, *, source: str) -> None:
    """Import the code that settings name.

    Raises:
        ModelError: a reference may not be imported.
        SegwrightError: a reference does not exist, or its module has an error.
    """
    for setting, reference in config.references():
        option = "--network " if setting == "network" else f"--set {setting}="
        trust.require(reference, kind=setting, source=source, option=option)
        trust.load(reference, kind=setting)
