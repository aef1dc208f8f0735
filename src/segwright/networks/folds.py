"""What a fold's checkpoint says of itself, and whether the folds of a model folder were trained as one model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.atomic_io import content_hash, describe_validation
from segwright.core.text import printable
from segwright.data.dataset import DatasetDescription
from segwright.data.plan import Plan
from segwright.networks.build import ArchitectureSpec, nnunet_spec
from segwright.workspace import DATASET_JSON, PLANS_JSON

_NETWORK: Final = "network"
_COMPARED: Final[Mapping[str, str]] = {
    "configuration": "configuration",
    _NETWORK: "network",
    "mirror_axes": "mirror axes",
    "swap_sides": "swapping of left and right",
    "setup_hash": "plans",
}
"""What of a checkpoint's document is the same in all folds of a model, and how it is called."""
_MOST_SHOWN: Final = 60
"""Characters of a value; hashes and arguments of networks may be long."""


class CheckpointHeader(BaseModel):
    """The part of `checkpoint_*.json` that prediction needs; training keeps more in it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    configuration: str
    network: ArchitectureSpec
    mirror_axes: tuple[int, ...] | None = None
    swap_sides: bool = False
    dataset_hash: str | None = None
    """Of the channels and labels trained with, see `DatasetDescription.meaning`; None: the checkpoint does not say."""
    setup_hash: str | None = None
    """Of the plan trained with, see `Plan.setup`; None: the checkpoint does not say."""


def parse_header(document: object, path: Path) -> CheckpointHeader:
    """Return the document beside the weights, checked.

    Raises:
        ModelError: a key is missing or does not fit.
    """
    try:
        return CheckpointHeader.model_validate(document)
    except ValidationError as error:
        raise ModelError(f"{path}: {describe_validation(error)}") from error


def require_one_model(
    headers: Mapping[str, CheckpointHeader], plan: Plan, description: DatasetDescription, where: Path
) -> None:
    """See that folds may be averaged, exported and scored as one model.

    Args:
        headers: by fold ("0", "all"); a hash that one lacks is not compared.
        plan: of the model folder.
        description: of the model folder.
        where: the model folder.

    Raises:
        ModelError: folds differ in network, plan, labels, channels or mirroring.
    """
    here = content_hash(description.meaning())
    others = [fold for fold, header in headers.items() if header.dataset_hash not in (None, here)]
    if others:
        raise ModelError(
            f"{where / DATASET_JSON}: has other labels or channels than those that fold {', '.join(others)} was "
            "trained with; put back the dataset.json of that training, or choose other folds (--folds)"
        )
    for key, name in _COMPARED.items():
        values = {fold: _comparable(key, header, plan) for fold, header in headers.items()}
        groups: dict[str, list[str]] = {}
        for fold, value in values.items():
            if value is None:
                continue
            groups.setdefault(content_hash(value), []).append(fold)
        if len(groups) < 2:
            continue
        shown = _shown(key, [values[folds[0]] for folds in groups.values()])
        found = "; ".join(
            f"fold {', '.join(folds)}: {each}" for folds, each in zip(groups.values(), shown, strict=True)
        )
        most = max(groups.values(), key=lambda folds: len(folds))
        raise ModelError(
            f"{where}: its folds were trained as different models, the {name} differ{'s' * (key == _NETWORK)} "
            f"({printable(found)}); choose folds of one model, for instance --folds "
            f"{','.join(most)}, or train the others again alike"
        )


def require_trained_plan(headers: Mapping[str, CheckpointHeader], plan: Plan, where: Path) -> None:
    """See that `plans.json` decides what it decided when the folds were trained.

    Args:
        headers: by fold ("0", "all"); one without a hash counts as right.
        plan: of the model folder.
        where: the model folder.

    Raises:
        ModelError: it was changed or damaged since.
    """
    others = folds_of_other_plans(headers, plan)
    if others:
        raise ModelError(
            f"{where / PLANS_JSON}: is not the plan that fold {', '.join(others)} was trained with (damaged, or "
            "changed since), and another spacing, normalisation or patch size gives other predictions; put back the "
            "plans.json of that training, or copy it from the folder of the preprocessed dataset; if it was changed on "
            "purpose, remove the lines 'checksum' and 'setup_hash' of the checkpoint_*.json in the folders of the folds"
        )


def folds_of_other_plans(headers: Mapping[str, CheckpointHeader], plan: Plan) -> list[str]:
    """Return the folds whose checkpoint says that it was trained with another plan."""
    return [
        fold
        for fold, header in headers.items()
        if header.setup_hash not in (None, plan.setup_hash(header.configuration))
    ]


def _comparable(key: str, header: CheckpointHeader, plan: Plan) -> Any:
    """Return a value of a checkpoint's document; a network with all arguments that it is built with."""
    if key == "mirror_axes":
        return list(header.mirror_axes or ())
    if key != _NETWORK:
        return getattr(header, key)
    spec, configuration = header.network, plan.configuration(header.configuration)
    with suppress(ConfigError):  # a network of the user's own has no other name
        spec = nnunet_spec(spec, configuration.architecture.model_dump(by_alias=True), configuration.patch_size)
    return spec.to_json()


def _shown(key: str, values: Sequence[Any]) -> list[str]:
    """Return values that differ for a message: of networks with one name what differs in their arguments."""
    if key != _NETWORK:
        return [str(value)[:_MOST_SHOWN] for value in values]
    names = [str(value["reference"]) for value in values]
    if len(set(names)) == len(names):
        return names
    arguments = [value["kwargs"] for value in values]
    every = dict.fromkeys(argument for each in arguments for argument in each)
    differing = next((name for name in every if len({json.dumps(each.get(name)) for each in arguments}) > 1), None)
    if differing is None:
        return names
    return [
        f"{name} with {differing} {json.dumps(each.get(differing))[:_MOST_SHOWN]}"
        for name, each in zip(names, arguments, strict=True)
    ]
