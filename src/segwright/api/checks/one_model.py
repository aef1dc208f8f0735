"""What the folds of one model folder have in common: labels, channels, plan and network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal

from segwright.core.errors import ConfigError, ModelError, SegwrightError
from segwright.core.files.atomic_io import read_checked_json
from segwright.core.files.locks import holder
from segwright.data.dataset import DatasetDescription, load_description
from segwright.data.plan import Plan
from segwright.training.config import CHANGEABLE, TrainConfig
from segwright.workspace import DATASET_JSON, PLANS_JSON, Workspace

logger = getLogger(__name__)

Fold = int | Literal["all"]

TRAIN_JSON: Final = "train.json"

_NETWORK: Final = ("network", "network_kwargs", "norm")
"""Settings that decide what network is trained."""
_WAYS_OUT: Final = (
    "remove the folder to train anew, or train a second model beside it under other plans ('segwright plan DATASET "
    "--name NAME', then 'segwright train DATASET --plans NAME ...')"
)


def is_begun(folder: Path) -> bool:
    """Whether a fold folder holds a checkpoint."""
    return any(folder.glob("checkpoint_*.safetensors"))


def begun_folds(model: Path) -> list[Path]:
    """Return the folders of the folds that hold a checkpoint, in order."""
    return [folder for folder in sorted(model.glob("fold_*")) if is_begun(folder)]


def require_same_task(model: Path, description: DatasetDescription) -> None:
    """See that folds trained before know the labels and channels of today.

    Raises:
        ModelError: they know others; both are listed.
    """
    used = model / DATASET_JSON
    begun = begun_folds(model)
    if not begun or not used.is_file():
        return
    differing = difference_in_meaning(load_description(used), description)
    if differing:
        raise ModelError(
            f"{model}: {_listed(begun)} trained with another dataset.json ({differing}), and one model has "
            f"one set of labels; put dataset.json back, {_WAYS_OUT}"
        )


def difference_in_meaning(trained_with: DatasetDescription, today: DatasetDescription) -> str:
    """Return what a dataset.json says now of channels and labels and said otherwise before; empty if it is the same."""
    then, now = trained_with.meaning(), today.meaning()
    return "; ".join(f"{key} {_shown(then[key])}, now {_shown(now[key])}" for key in then if then[key] != now[key])


def require_same_plan(model: Path, plan: Plan, configuration: str) -> None:
    """See that folds trained before belong to this plan.

    Raises:
        ModelError: they were trained with another one.
    """
    used = model / PLANS_JSON
    begun = begun_folds(model)
    if not begun or not used.is_file():
        return
    then = Plan.load(used)
    if configuration not in then.configurations or then.setup(configuration) != plan.setup(configuration):
        raise ModelError(f"{model}: {_listed(begun)} trained with a plan that has changed since; {_WAYS_OUT}")


def require_same_network(model: Path, folds: Sequence[Fold], settings: Mapping[str, Any]) -> None:
    """See that folds that are not begun get the network of those that are.

    Args:
        model: the model folder.
        folds: which shall be trained.
        settings: fields of `TrainConfig` for them.

    Raises:
        ModelError: a fold of the model has another network.
    """
    begun = begun_folds(model)
    if all(Workspace.fold_folder(model, fold) in begun for fold in folds):
        return  # a training that goes on refuses another network itself
    wanted = TrainConfig.from_mapping(settings).model_dump(mode="json")
    for folder in begun:
        used = recorded_settings(folder)
        for key in _NETWORK:
            if used.get(key, wanted[key]) != wanted[key]:
                raise ModelError(
                    f"{folder}: was trained with {key} = {_value(used[key])}, not {_value(wanted[key])}, and the folds "
                    f"of one model share one network; give the same {key}, {_WAYS_OUT}"
                )


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a fold was trained with; none where the record is missing or damaged."""
    file = folder / TRAIN_JSON
    if not file.is_file():
        return {}
    try:
        document = read_checked_json(file)
    except SegwrightError as error:
        logger.warning("%s; the settings that this fold was trained with are not compared", error)
        return {}
    config = document.get("config") if isinstance(document, dict) else None
    return config if isinstance(config, dict) else {}


def other_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that are not those a fold was trained with: name to the fold's value and the one given.

    A fold without a record says nothing.
    """
    used = recorded_settings(folder)
    now = TrainConfig.from_mapping(settings).model_dump(mode="json")
    return {key: (used[key], now[key]) for key in settings if key in used and used[key] != now[key]}


def require_nothing_new(folder: Path, settings: Mapping[str, Any]) -> None:
    """See that a finished fold can be what is asked for; how long and how often may differ, without effect.

    Raises:
        ConfigError: a setting is given that would make it another training.
    """
    for key, (used, now) in other_settings(folder, settings).items():
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{folder}: was trained to its end with {key} = {_value(used)}, not {_value(now)}; {_WAYS_OUT}"
            )


def require_unbegun(folder: Path) -> None:
    """See that a fold's folder holds no training, and that none is going on.

    Raises:
        ModelError: it does.
    """
    if is_begun(folder):
        busy = holder(Workspace.lock_beside(folder))
        if busy is not None:
            raise ModelError(f"{folder}: is being trained by {busy}; wait for its end")
        raise ModelError(f"{folder}: holds a training already; continue it with --resume, or remove the folder")


def _listed(folders: Sequence[Path]) -> str:
    names = ", ".join(folder.name.removeprefix("fold_") for folder in folders)
    return f"folds {names} were" if len(folders) > 1 else f"fold {names} was"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_parts(value)) or "none"
    return "none" if value is None else str(value)


def _parts(items: Sequence[Any]) -> Iterator[str]:
    for item in items:
        yield f"{item[0]} {item[1]}" if isinstance(item, list) else str(item)


def _value(value: Any) -> str:
    return "that of the plan" if value is None else str(value)
