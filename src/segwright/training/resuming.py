"""What must be equal for a training to go on, and what may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ConfigError, ModelError
from segwright.training.checkpoints import CheckpointState
from segwright.training.config import TrainConfig

CHANGEABLE: Final = (
    "num_epochs",
    "budget_s",
    "num_val_iterations_per_epoch",
    "save_every",
    "save_interval_s",
    "disable_checkpointing",
)
"""Settings that may differ after a resume: how long, how often; all others would make it another training."""


def require_same_training(state: CheckpointState, identity: Mapping[str, Any], path: Path) -> None:
    """Refuse the checkpoint of another trainer, configuration, fold or plan.

    Raises:
        ModelError: what differs.
    """
    found = state.model_dump()
    for key in ("trainer", "configuration", "fold", "plans_hash"):
        if found[key] != identity[key]:
            what = (
                "the plan has changed since" if key == "plans_hash" else f"{key} is {found[key]}, not {identity[key]}"
            )
            raise ModelError(f"{path}: {what}; resume what was begun, or remove the fold folder to start anew")


def resumed_config(config: TrainConfig, state: CheckpointState, path: Path) -> TrainConfig:
    """Return the settings to go on with: what was set now where that may change, the checkpoint's elsewhere.

    Raises:
        ConfigError: a setting was set to another value and may not change.
    """
    before = TrainConfig.from_mapping(state.config)
    old, new = before.model_dump(), config.model_dump()
    for key in sorted(config.model_fields_set - set(CHANGEABLE)):
        if new[key] is not None and new[key] != old[key]:
            raise ConfigError(
                f"{path}: was trained with {key} = {old[key]}, now {new[key]}; resume with the same value, or remove "
                "the fold folder to start anew"
            )
    again = config.model_fields_set & set(CHANGEABLE)
    values = {key: new[key] if key in again else value for key, value in old.items()}
    return TrainConfig.model_construct(_fields_set={*state.config_set, *again}, **values)
