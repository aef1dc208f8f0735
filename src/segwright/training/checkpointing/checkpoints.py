"""Save and load checkpoints atomically: weights and optimiser state as safetensors, everything else as JSON.

`checkpoint_KIND.safetensors` has the weights, and in its header the state, so one rename replaces the old checkpoint.
`checkpoint_latest_optimizer_STEP.safetensors`, named in the state, is written before that. `checkpoint_KIND.json` is a
copy of the state for people and for prediction, written last. Each file has a checksum. The checkpoint before the
latest is kept in case the latest is damaged.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.json_documents import describe_validation, with_checksum, write_json
from segwright.networks.checkpoint import load_weights, require_undamaged, save_weights, write_weights
from segwright.training.config import RENAMED, with_current_names

logger = getLogger(__name__)

SCHEMA_VERSION: Final = 1

Kind = Literal["latest", "best", "final"]

_HEADER_KEY = "segwright"


class CheckpointState(BaseModel):
    """The state of a training at one moment, without its tensors.

    `epoch` is the current one, from 0; `epoch_step` and `epoch_losses` are of its finished steps. `step` counts all
    training steps, `elapsed_s` is training time in seconds. `config_set` names the settings that the user set.
    `dataset_hash` is of the channels and labels of dataset.json, `setup_hash` of what in the plan affects predictions
    (see `Plan.setup`); checkpoints of earlier versions have neither.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = SCHEMA_VERSION
    trainer: str
    configuration: str
    fold: int | str
    network: dict[str, Any]
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    elapsed_s: float
    epoch_step: int = 0
    epoch_losses: list[float | None] = Field(default_factory=list)
    mirror_axes: tuple[int, ...]
    swap_sides: bool = False
    logging: list[dict[str, Any]]
    best_ema: float | None
    config: dict[str, Any]
    config_set: list[str]
    plans_hash: str
    dataset_hash: str | None = None
    setup_hash: str | None = None
    optimizer_file: str | None = None
    optimizer_values: dict[str, Any] = Field(default_factory=dict)
    learning_rates: dict[str, Any] = Field(default_factory=dict)
    scaler: dict[str, Any] | None = None

    @field_validator("config")
    @classmethod
    def _rename_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        return with_current_names(config)

    @field_validator("config_set")
    @classmethod
    def _rename_set_settings(cls, names: list[str]) -> list[str]:
        return [RENAMED.get(name, name) for name in names]

    @property
    def losses(self) -> list[Tensor]:
        """Losses of the current epoch's finished steps, scalars on the CPU; NaN for a skipped one."""
        return [torch.tensor(math.nan if loss is None else loss) for loss in self.epoch_losses]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint."""

    state: CheckpointState
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def losses_to_json(losses: Sequence[Tensor]) -> list[float | None]:
    """Return the losses of steps as JSON values; None for a skipped step."""
    return [value if math.isfinite(value) else None for value in map(float, losses)]


def checkpoint_file(folder: Path, kind: Kind) -> Path:
    """Return the weights file of a checkpoint in a fold folder."""
    return folder / f"checkpoint_{kind}.safetensors"


def save(
    folder: Path,
    kind: Kind,
    state: CheckpointState,
    weights: Mapping[str, Tensor],
    *,
    optimizer: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint into a fold folder and return its weights file.

    Args:
        folder: of the fold.
        kind: which checkpoint to replace.
        state: of the training.
        weights: the network's state dict.
        optimizer: tensors to resume from; None for a checkpoint that is not resumed.
    """
    path = checkpoint_file(folder, kind)
    if optimizer is not None:
        name = f"{path.stem}_optimizer_{state.step}.safetensors"
        save_weights(folder / name, optimizer)
        state = state.model_copy(update={"optimizer_file": name})
    document = state.model_dump(mode="json")
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    with atomic_path(path, size=size) as temporary:
        write_weights(temporary, weights, metadata={_HEADER_KEY: json.dumps(document)})
        if kind == "latest":
            _keep_as_previous(path)
    write_json(path.with_suffix(".json"), with_checksum(document))
    _remove_unused_optimizers(folder)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint by its weights file.

    Raises:
        ModelError: a file is missing.
        DamagedWeightsError: a file is damaged.
    """
    weights = load_weights(path)
    state = read_state(path)
    optimizer = load_weights(path.parent / state.optimizer_file) if state.optimizer_file else {}
    return Checkpoint(state=state, weights=weights, optimizer=optimizer)


def read_state(path: Path) -> CheckpointState:
    """Read the state in the header of a weights file.

    Raises:
        ModelError: the file is missing, damaged, or not a checkpoint of a training.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            header = (stream.metadata() or {}).get(_HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); delete it and train again") from error
    if header is None:
        raise ModelError(f"{path}: contains weights but no training state to resume from; start a new training")
    try:
        return CheckpointState.model_validate_json(header)
    except ValidationError as error:
        raise ModelError(f"{path}: {describe_validation(error)}; start a new training") from error


def is_finished(folder: Path) -> bool:
    """Return whether the training in a fold folder has ended."""
    path = checkpoint_file(folder, "final")
    return path.is_file() and path.with_suffix(".json").is_file()


def find_resumable(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the final one of a finished training, else the latest; None without any.

    If it is damaged, log a warning and return the one before; a damaged final checkpoint is removed then, so that the
    training counts as unfinished.

    Raises:
        ModelError: all checkpoints are damaged.
    """
    final = checkpoint_file(folder, "final")
    damage: ModelError | None = None
    earlier = (checkpoint_file(folder, "latest"), _previous(folder))
    tried = (final, *earlier) if is_finished(folder) else earlier
    for path in filter(Path.is_file, tried):
        try:
            _require_undamaged(path)
        except ModelError as error:
            logger.warning("%s", error)
            damage = damage or error
            continue
        if damage is not None:
            logger.warning("resuming from the previous checkpoint, of epoch %d", read_state(path).epoch)
            if path != final and is_finished(folder):
                delete(folder, "final")
        return path
    if damage is not None:
        raise ModelError(f"{damage}; no other checkpoint is left: remove {folder} to train again") from damage
    return None


def delete(folder: Path, kind: Kind) -> None:
    """Remove a checkpoint, its JSON first; with the latest also the previous one."""
    path = checkpoint_file(folder, kind)
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if kind == "latest":
        _previous(folder).unlink(missing_ok=True)
    _remove_unused_optimizers(folder)


def _require_undamaged(path: Path) -> None:
    """Check a checkpoint's files against their checksums."""
    require_undamaged(path)
    optimizer = read_state(path).optimizer_file
    if optimizer is not None:
        require_undamaged(path.with_name(Path(optimizer).name))


def _previous(folder: Path) -> Path:
    return folder / "checkpoint_previous.safetensors"


def _keep_as_previous(path: Path) -> None:
    """Keep the latest checkpoint under the previous one's name, before it is replaced."""
    if not path.is_file():
        return
    previous = _previous(path.parent)
    try:
        previous.unlink(missing_ok=True)
        os.link(path, previous)  # takes no space, and the latest checkpoint exists at any time
    except OSError:  # the file system has no hard links
        os.replace(path, previous)


def _remove_unused_optimizers(folder: Path) -> None:
    """Remove optimiser files that no checkpoint names."""
    kept = set()
    for path in (checkpoint_file(folder, "latest"), _previous(folder)):
        with suppress(ModelError):
            kept.add(read_state(path).optimizer_file)
    for old in folder.glob("checkpoint_latest_optimizer_*.safetensors"):
        if old.name not in kept:
            old.unlink(missing_ok=True)
