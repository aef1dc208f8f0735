"""Open a trained model folder: plan, dataset description, the networks of its folds; no raw data, no training code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

from segwright.core.device import resolve_device
from segwright.core.documents import content_hash, file_hash, parse_document
from segwright.core.errors import ModelError, SegwrightError
from segwright.data.dataset import DatasetDescription, load_description
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.inference.cascade import CascadePredictor, previous_stage_folder
from segwright.inference.predictor import Predictor
from segwright.networks.build import ArchitectureSpec, build_from_spec
from segwright.networks.checkpoint import load_state, load_weights
from segwright.workspace import DATASET_JSON, PLANS_JSON, Workspace

Folds = Literal["all"] | Sequence[int] | None
"""Fold numbers; "all": the network trained on all cases (`fold_all`), or without it every fold; None: every fold."""

_FOLD_PREFIX = "fold_"
_ALL = "all"


class CheckpointHeader(BaseModel):
    """The part of `checkpoint_*.json` that prediction needs; training keeps more in it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    configuration: str
    network: ArchitectureSpec
    mirror_axes: tuple[int, ...] | None = None


def load_predictor(
    model_folder: Path,
    *,
    folds: Folds = None,
    checkpoint: str = "final",
    device: str = "auto",
    mirroring: bool = True,
    precision: str = "auto",
) -> Predictor:
    """Return the predictor of a model folder, its folds' logits averaged.

    Args:
        model_folder: has `plans.json`, `dataset.json` and `fold_k/checkpoint_<checkpoint>.{safetensors,json}`.
        folds: which networks take part.
        checkpoint: `final`, `best` or `latest`.
        device: auto, cpu, cuda, cuda:1 or mps.
        mirroring: average over the flips that training allowed.
        precision: auto, fp32, bf16 or fp16.

    Raises:
        ModelError: a file, a fold or a checkpoint is missing, or folds do not belong together.
    """
    target = resolve_device(device)
    _require_files(model_folder)
    chosen = choose_folds(model_folder, folds, checkpoint)
    headers = [_header(model_folder, fold, checkpoint) for fold in chosen]
    _require_same(headers, chosen, model_folder)
    plan = Plan.load(model_folder / PLANS_JSON)
    description = load_description(model_folder / DATASET_JSON)
    labels = Labels.from_description(description)
    configuration = plan.configuration(headers[0].configuration)
    networks = [
        _load_network(_weights(model_folder, fold, checkpoint), header, configuration, description, labels)
        for fold, header in zip(chosen, headers, strict=True)
    ]
    build: Callable[..., Predictor] = Predictor
    if configuration.previous_stage is not None:
        folder = previous_stage_folder(model_folder, headers[0].configuration, configuration.previous_stage)
        build = partial(
            CascadePredictor, load_predictor(folder, device=device, mirroring=mirroring, precision=precision)
        )
    return build(
        networks,
        plan,
        configuration,
        labels,
        device=target,
        mirror_axes=(headers[0].mirror_axes or ()) if mirroring else (),
        precision=precision,
        description=description,
        origin=_origin(model_folder, chosen, checkpoint, headers[0].configuration, plan, description),
    )


def choose_folds(model_folder: Path, folds: Folds, checkpoint: str) -> tuple[str, ...]:
    """Return the fold names ("0", "all") that are meant and have the checkpoint.

    Raises:
        ModelError: one of them has none; what the folder holds is listed.
    """
    there = {
        path.name.removeprefix(_FOLD_PREFIX): _checkpoints(path)
        for path in sorted(model_folder.glob(f"{_FOLD_PREFIX}*"))
        if path.is_dir()
    }
    complete = [fold for fold, names in there.items() if checkpoint in names]
    numbered = sorted((fold for fold in complete if fold.isdecimal()), key=int)
    if folds is None:
        wanted = numbered or [fold for fold in complete if fold == _ALL]
    elif folds == _ALL:
        wanted = [_ALL] if _ALL in complete else numbered
    else:
        wanted = list(dict.fromkeys(str(fold) for fold in folds))
    missing = [fold for fold in wanted if fold not in complete]
    if missing or not wanted:
        asked = f"fold {', '.join(missing)}" if missing else "any fold"
        held = "; ".join(f"fold {fold}: {', '.join(names) or 'none'}" for fold, names in there.items())
        raise ModelError(
            f"{model_folder}: no '{checkpoint}' checkpoint for {asked}; "
            + (f"there is {held}; choose among these or finish the training" if held else "no fold is trained here")
        )
    return tuple(wanted)


def _checkpoints(fold_folder: Path) -> list[str]:
    weights = {path.stem for path in fold_folder.glob("checkpoint_*.safetensors")}
    headers = {path.stem for path in fold_folder.glob("checkpoint_*.json")}
    return sorted(name.removeprefix("checkpoint_") for name in weights & headers)


def _require_files(model_folder: Path) -> None:
    if not model_folder.is_dir():
        raise ModelError(f"{model_folder}: no such model folder; expected plans.json, dataset.json and fold_k in it")
    missing = [name for name in (PLANS_JSON, DATASET_JSON) if not (model_folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{model_folder}: {' and '.join(missing)} missing; a model folder has plans.json, dataset.json and fold_k"
        )


def _weights(model_folder: Path, fold: str, checkpoint: str) -> Path:
    return Workspace.fold_folder(model_folder, fold) / f"checkpoint_{checkpoint}.safetensors"


def _header(model_folder: Path, fold: str, checkpoint: str) -> CheckpointHeader:
    path = _weights(model_folder, fold, checkpoint).with_suffix(".json")
    try:
        return parse_document(CheckpointHeader, path)
    except SegwrightError as error:
        raise ModelError(str(error)) from error


def _require_same(headers: Sequence[CheckpointHeader], folds: Sequence[str], model_folder: Path) -> None:
    for fold, header in zip(folds, headers, strict=True):
        if header.configuration != headers[0].configuration or header.mirror_axes != headers[0].mirror_axes:
            raise ModelError(
                f"{model_folder}: fold {fold} was trained as '{header.configuration}' with mirror axes "
                f"{header.mirror_axes}, fold {folds[0]} as '{headers[0].configuration}' with {headers[0].mirror_axes}; "
                "predict with folds of one training set-up"
            )


def _load_network(
    weights: Path,
    header: CheckpointHeader,
    configuration: Configuration,
    description: DatasetDescription,
    labels: Labels,
) -> nn.Module:
    num_channels = len(description.channel_names)
    if configuration.previous_stage is not None:
        num_channels += len(labels.foreground_labels)
    network = build_from_spec(
        header.network,
        configuration.architecture.model_dump(by_alias=True),
        num_channels,
        labels.num_heads,
        configuration.patch_size,
        False,
    )
    load_state(network, load_weights(weights), source=str(weights))
    return network.eval()


def _origin(
    model_folder: Path,
    folds: Sequence[str],
    checkpoint: str,
    configuration: str,
    plan: Plan,
    description: DatasetDescription,
) -> dict[str, Any]:
    """Return what tells this model from any other, wherever its folder lies."""
    weights = [file_hash(_weights(model_folder, fold, checkpoint)) for fold in folds]
    return {
        "model": model_folder.name,
        "configuration": configuration,
        "folds": list(folds),
        "checkpoint": checkpoint,
        "model_hash": content_hash([weights, plan.to_json(), description.raw(), configuration]),
    }
