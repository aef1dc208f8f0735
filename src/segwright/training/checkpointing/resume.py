"""A trainer's state as a value and back; what must be equal for a training to go on, and what may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.networks.checkpoint import load_state
from segwright.training.checkpointing.checkpoints import Checkpoint, CheckpointState, checkpoint_file, recorded
from segwright.training.config import CHANGEABLE, TrainConfig
from segwright.training.monitoring.logbook import Logbook
from segwright.training.optim.ema import separated
from segwright.training.optim.optimizers import restore_optimizer

if TYPE_CHECKING:
    from segwright.training.trainer import Trainer

_CHANGED: Final = {
    "plans_hash": "the plan has changed since",
    "dataset_hash": "labels or channels of dataset.json have changed since",
}


def snapshot(trainer: Trainer, optimizer_values: Mapping[str, Any]) -> CheckpointState:
    """Return where a trainer stands, apart from its tensors."""
    return CheckpointState(
        trainer=trainer.trainer_name,
        configuration=trainer.configuration_name,
        fold=trainer.fold,
        network=trainer.network_spec().to_json(),
        epoch=trainer.current_epoch,
        epoch_step=trainer.epoch_step,
        epoch_losses=recorded([step["loss"] for step in trainer.epoch_outputs]),
        step=trainer.current_step,
        elapsed_s=trainer.clock.elapsed_s,
        mirror_axes=trainer.recipe.mirror_axes,
        swap_sides=trainer.recipe.swaps_sides,
        logging=trainer.logbook.rows,
        best_ema=trainer.best_ema,
        config=trainer.config.model_dump(mode="json"),
        config_set=sorted(trainer.config.model_fields_set),
        plans_hash=trainer.plans_hash,
        dataset_hash=trainer.dataset_hash,
        setup_hash=trainer.plans.setup_hash(trainer.configuration_name),
        optimizer_values=dict(optimizer_values),
        scaler=None if trainer.grad_scaler is None else trainer.grad_scaler.state_dict(),
    )


def restore(trainer: Trainer, checkpoint: Checkpoint, path: Path) -> None:
    """Undo `snapshot`: put an initialized trainer where the checkpoint at `path` stands."""
    state = checkpoint.state
    load_state(trainer.network, checkpoint.weights, source=str(path))
    own, averages = separated(checkpoint.optimizer)
    restore_optimizer(trainer.optimizer, trainer.network, own, state.optimizer_values)
    if trainer.average is not None:
        trainer.average.restore(averages)
    if trainer.grad_scaler is not None and state.scaler is not None:
        trainer.grad_scaler.load_state_dict(state.scaler)
    trainer.current_epoch, trainer.current_step, trainer.epoch_step = state.epoch, state.step, state.epoch_step
    trainer.epoch_outputs = [{"loss": loss.to(trainer.device)} for loss in state.losses]
    trainer.logbook = Logbook(state.logging)
    trainer.best_ema = state.best_ema
    trainer.clock.before_s = state.elapsed_s
    trainer.is_finished = path == checkpoint_file(path.parent, "final")


def require_same_training(state: CheckpointState, identity: Mapping[str, Any], path: Path) -> None:
    """Refuse the checkpoint of another trainer, configuration, fold or plan.

    Raises:
        ModelError: what differs.
    """
    found = state.model_dump()
    for key in ("trainer", "configuration", "fold", "plans_hash", "dataset_hash"):
        if found[key] is not None and found[key] != identity[key]:
            what = _CHANGED.get(key, f"{key} is {found[key]}, not {identity[key]}")
            raise ModelError(f"{path}: {what}; resume what was begun, or remove the fold folder to start anew")


def resumed_config(
    config: TrainConfig, state: CheckpointState, path: Path, trust: CodeTrust = TRUST_NONE
) -> TrainConfig:
    """Return the settings to go on with: what was set now where that may change, the checkpoint's elsewhere.

    Code that only the checkpoint names is imported if `trust` allows it.

    Raises:
        ConfigError: a setting was set to another value and may not change.
        ModelError: the checkpoint names code that may not be imported.
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
    resumed = TrainConfig.model_construct(_fields_set={*state.config_set, *again}, **values)
    load_references(resumed, trust, source=str(path))
    return resumed


def load_references(config: TrainConfig, trust: CodeTrust, *, source: str) -> None:
    """Import the code that settings name, so that each part is found when it is needed.

    Raises:
        ModelError: a reference may not be imported.
        SegwrightError: there is none behind one, or its module has an error.
    """
    for setting, reference in config.references():
        option = "--network " if setting == "network" else f"--set {setting}="
        trust.require(reference, kind=setting, source=source, option=option)
        trust.load(reference, kind=setting)
