"""Check from their checkpoints that the folds of a model folder belong to one model, before they are used; that a new
fold's network is theirs.

`api.checks.one_model` checks from their settings that a new fold fits the existing ones, before it is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import describe_validation
from segwright.core.text import printable
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan
from segwright.networks.build import ArchitectureSpec, nnunet_spec
from segwright.networks.checkpoint import DamagedWeightsError, drop_aliases, load_shapes
from segwright.workspace import DATASET_JSON, NAME_IT, PLANS_JSON

_NETWORK: Final = "network"
_COMPARED: Final[Mapping[str, str]] = {
    "configuration": "configuration",
    _NETWORK: "network",
    "mirror_axes": "mirror axes",
    "swap_sides": "swapping of left and right",
    "setup_hash": "plans",
}
"""Values of a checkpoint document that all folds of a model share, with their names for messages."""
_MAX_SHOWN_CHARACTERS: Final = 60
"""Most characters of a value in a message; hashes and network arguments may be long."""


class CheckpointHeader(BaseModel):
    """The part of `checkpoint_*.json` that prediction needs."""

    model_config = ConfigDict(frozen=True, extra="allow")

    configuration: str
    network: ArchitectureSpec
    mirror_axes: tuple[int, ...] | None = None
    swap_sides: bool = False
    dataset_hash: str | None = None
    """Hash of channels and labels, see `DatasetDescription.meaning`; None if the checkpoint has none."""
    setup_hash: str | None = None
    """Hash of the plan, see `Plan.setup`; None if the checkpoint has none."""


def parse_header(document: object, path: Path) -> CheckpointHeader:
    """Validate the document beside the weights.

    Raises:
        ModelError: a key is missing or invalid.
    """
    try:
        return CheckpointHeader.model_validate(document)
    except ValidationError as error:
        raise ModelError(f"{path}: {describe_validation(error)}") from error


def require_one_model(
    headers: Mapping[str, CheckpointHeader], plan: Plan, description: DatasetDescription, where: Path
) -> None:
    """Check that folds can be averaged, exported and scored as one model.

    Args:
        headers: header of each fold ("0", "all"); missing hashes are not compared.
        plan: plan of the model folder.
        description: dataset.json of the model folder.
        where: the model folder.

    Raises:
        ModelError: folds differ in network, plan, labels, channels or mirroring.
    """
    here = content_hash(description.meaning())
    others = [fold for fold, header in headers.items() if header.dataset_hash not in (None, here)]
    if others:
        raise ModelError(
            f"{where / DATASET_JSON}: has other labels or channels than those that fold {', '.join(others)} was "
            "trained with; restore the dataset.json of that training, or choose other folds (--folds)"
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
            f"{','.join(most)}, or train the others again with the same settings"
        )


def require_same_network(fold_folder: Path, network: nn.Module) -> None:
    """Check that the other folds of a model have weights of the same names and shapes as a network to be trained.

    Two networks that files name alike, such as two lambdas, may differ in nothing else that is recorded.

    Args:
        fold_folder: of the fold to be trained.
        network: its network.

    Raises:
        ModelError: another fold has another network.
    """
    own = {name: tuple(tensor.shape) for name, tensor in drop_aliases(network.state_dict()).items()}
    for other in sorted(fold_folder.parent.glob("fold_*")):
        files = sorted(other.glob("checkpoint_*.safetensors"))
        weights = [file for file in files if "_optimizer_" not in file.name]
        if other == fold_folder or not weights:
            continue
        with suppress(DamagedWeightsError):  # reported where it is used
            found = load_shapes(weights[0])
            difference = next((name for name in {**own, **found} if own.get(name) != found.get(name)), None)
            if difference is not None:
                here, there = (str(shapes.get(difference, "absent")) for shapes in (own, found))
                raise ModelError(
                    f"{other}: was trained with another network ('{difference}' is {there} there, {here} here), but "
                    f"all folds of a model must share one; train the same network, or {NAME_IT}"
                )


def require_trained_plan(headers: Mapping[str, CheckpointHeader], plan: Plan, where: Path) -> None:
    """Check that `plans.json` is the plan with which the folds were trained.

    Args:
        headers: header of each fold ("0", "all"); those without a hash pass.
        plan: plan of the model folder.
        where: the model folder.

    Raises:
        ModelError: it was changed or damaged afterwards.
    """
    others = folds_of_other_plans(headers, plan)
    if others:
        raise ModelError(
            f"{where / PLANS_JSON}: is not the plan that fold {', '.join(others)} was trained with (damaged, or "
            "changed since), and another spacing, normalisation or patch size gives other predictions; restore the "
            "plans.json of that training, or copy it from the folder of the preprocessed dataset; if it was changed on "
            "purpose, delete the lines 'checksum' and 'setup_hash' of the checkpoint_*.json in the folders of the folds"
        )


def folds_of_other_plans(headers: Mapping[str, CheckpointHeader], plan: Plan) -> list[str]:
    """Return the folds that were trained with another plan, according to their checkpoints."""
    return [
        fold
        for fold, header in headers.items()
        if header.setup_hash not in (None, plan.setup_hash(header.configuration))
    ]


def _comparable(key: str, header: CheckpointHeader, plan: Plan) -> Any:
    """Return a value of a checkpoint document; a network includes its default arguments."""
    if key == "mirror_axes":
        return list(header.mirror_axes or ())
    if key != _NETWORK:
        return getattr(header, key)
    spec, configuration = header.network, plan.configuration(header.configuration)
    with suppress(ConfigError):  # a user's own network has no other name
        spec = nnunet_spec(spec, configuration.architecture.model_dump(by_alias=True), configuration.patch_size)
    return spec.to_json()


def _shown(key: str, values: Sequence[Any]) -> list[str]:
    """Format different values for a message; for networks of the same name only the different arguments."""
    if key != _NETWORK:
        return [str(value)[:_MAX_SHOWN_CHARACTERS] for value in values]
    names = [str(value["reference"]) for value in values]
    if len(set(names)) == len(names):
        return names
    arguments = [value["kwargs"] for value in values]
    every = dict.fromkeys(argument for each in arguments for argument in each)
    differing = next((name for name in every if len({json.dumps(each.get(name)) for each in arguments}) > 1), None)
    if differing is None:
        return names
    return [
        f"{name} with {differing} {json.dumps(each.get(differing))[:_MAX_SHOWN_CHARACTERS]}"
        for name, each in zip(names, arguments, strict=True)
    ]
