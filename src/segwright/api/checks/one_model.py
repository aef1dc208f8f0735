"""Check before a training that the folds of its model folder share labels, channels, plan and network.

`networks.folds` checks the checkpoints of trained folds, before they are used as one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal

from segwright.core.errors import ConfigError, ModelError, SegwrightError
from segwright.core.files.json_documents import read_checked_json
from segwright.core.files.locks import holder
from segwright.data.description import DatasetDescription, load_description
from segwright.data.plan import Plan
from segwright.training.config import CHANGEABLE, TrainConfig, with_current_names
from segwright.workspace import DATASET_JSON, NAME_IT, PLANS_JSON, TRAIN_JSON, Workspace

logger = getLogger(__name__)

Fold = int | Literal["all"]

NETWORK_SETTINGS: Final = ("network", "network_kwargs", "norm")
"""Settings that define the network."""
_REMEDIES: Final = f"delete the folder to train again, or {NAME_IT}"


def has_checkpoint(folder: Path) -> bool:
    """Return whether a fold folder contains a checkpoint."""
    return any(folder.glob("checkpoint_*.safetensors"))


def folds_with_checkpoint(model: Path) -> list[Path]:
    """Return the fold folders that contain a checkpoint, in order."""
    return [folder for folder in sorted(model.glob("fold_*")) if has_checkpoint(folder)]


def require_same_task(model: Path, description: DatasetDescription) -> None:
    """Check that existing folds were trained with the current labels and channels.

    Raises:
        ModelError: they were trained with others; both are listed.
    """
    file = model / DATASET_JSON
    existing = folds_with_checkpoint(model)
    if not existing or not file.is_file():
        return
    difference = task_difference(load_description(file), description)
    if difference:
        raise ModelError(
            f"{model}: {_folds_were(existing)} trained with another dataset.json ({difference}), but all folds of a "
            f"model must share one; restore dataset.json, {_REMEDIES}"
        )


def task_difference(trained_with: DatasetDescription, current: DatasetDescription) -> str:
    """Describe how channels and labels of dataset.json changed; empty if they did not."""
    before, now = trained_with.meaning(), current.meaning()
    return "; ".join(
        f"{key} {_listed(before[key])}, now {_listed(now[key])}" for key in before if before[key] != now[key]
    )


def require_same_plan(model: Path, plan: Plan, configuration: str) -> None:
    """Check that existing folds were trained with this plan.

    Raises:
        ModelError: they were trained with another one.
    """
    file = model / PLANS_JSON
    existing = folds_with_checkpoint(model)
    if not existing or not file.is_file():
        return
    before = Plan.load(file)
    if configuration not in before.configurations or before.setup(configuration) != plan.setup(configuration):
        raise ModelError(f"{model}: {_folds_were(existing)} trained with a plan that has changed since; {_REMEDIES}")


def require_same_network(model: Path, folds: Sequence[Fold], settings: Mapping[str, Any]) -> None:
    """Check that new folds use the network of the existing ones.

    Args:
        model: the model folder.
        folds: folds to train.
        settings: fields of `TrainConfig` for them.

    Raises:
        ModelError: an existing fold has another network.
    """
    existing = folds_with_checkpoint(model)
    if all(Workspace.fold_folder(model, fold) in existing for fold in folds):
        return  # resuming checks the network itself
    wanted = TrainConfig.from_mapping(settings).model_dump(mode="json")
    for folder in existing:
        used = recorded_settings(folder)
        for key in NETWORK_SETTINGS:
            if used.get(key, wanted[key]) != wanted[key]:
                raise ModelError(
                    f"{folder}: was trained with {key} = {_value(used[key])}, not {_value(wanted[key])}, but all "
                    f"folds of a model must share one network; give the same {key}, {_REMEDIES}"
                )


def recorded(folder: Path) -> dict[str, Any]:
    """Return the record of a fold's training; empty if it is missing or damaged."""
    file = folder / TRAIN_JSON
    if not file.is_file():
        return {}
    try:
        document = read_checked_json(file)
    except SegwrightError as error:
        logger.warning("%s; what this fold was trained with is not compared", error)
        return {}
    return document if isinstance(document, dict) else {}


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Return the recorded settings of a fold; empty if there are none."""
    config = recorded(folder).get("config")
    return with_current_names(config) if isinstance(config, dict) else {}


def differing_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the given settings that differ from those of a fold, by name: (the fold's value, the given value).

    Empty for a fold without a record.
    """
    used = recorded_settings(folder)
    now = TrainConfig.from_mapping(settings).model_dump(mode="json")
    return {key: (used[key], now[key]) for key in settings if key in used and used[key] != now[key]}


def require_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check that the given settings match a finished fold; training length and intervals may differ.

    Raises:
        ConfigError: another setting differs.
    """
    for key, (used, now) in differing_settings(folder, settings).items():
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{folder}: is finished and was trained with {key} = {_value(used)}, not {_value(now)}; {_REMEDIES}"
            )


def require_no_checkpoint(folder: Path) -> None:
    """Check that a fold contains no checkpoint yet, unless a process is training it.

    Raises:
        ModelError: it does.
    """
    if has_checkpoint(folder) and holder(Workspace.lock_beside(folder)) is None:
        raise ModelError(
            f"{folder}: already contains a training; continue it with --resume, or delete the folder; to train another "
            f"model on this fold, {NAME_IT}"
        )


def _folds_were(folders: Sequence[Path]) -> str:
    """Return the subject and verb of a message: `fold 0 was`, `folds 0, 1 were`."""
    names = ", ".join(folder.name.removeprefix("fold_") for folder in folders)
    return f"folds {names} were" if len(folders) > 1 else f"fold {names} was"


def _listed(value: Any) -> str:
    """Return a value of `DatasetDescription.meaning` as text: names, or names with values."""
    if isinstance(value, list):
        return ", ".join(f"{item[0]} {item[1]}" if isinstance(item, list) else str(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _value(value: Any) -> str:
    return "that of the plan" if value is None else str(value)
