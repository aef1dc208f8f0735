"""Load a predictor from a trained model folder: plan, dataset.json and the networks of its folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from torch import Tensor, nn

from segwright.core.device import resolve_device
from segwright.core.errors import ModelError, SegwrightError
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.core.files.json_documents import has_valid_checksum, read_json
from segwright.core.files.names import require_text_path
from segwright.core.parallel import fork_safe
from segwright.data.description import DatasetDescription, load_description
from segwright.data.labels import Labels, decoding_problem
from segwright.data.plan import Configuration, Plan
from segwright.inference.cascade import previous_stage_folder
from segwright.inference.models.identity import model_hash
from segwright.inference.predictor import Predictor
from segwright.inference.reliability.model import ReliabilityModel, training_range
from segwright.inference.window.tiling import DEFAULT_STEP
from segwright.networks.build import ArchitectureSpec, build_from_spec, require_weights
from segwright.networks.checkpoint import load_state, load_weights
from segwright.networks.folds import (
    CheckpointHeader,
    folds_of_other_plans,
    parse_header,
    require_one_model,
    require_trained_plan,
)
from segwright.networks.logits import load_logits_of, return_logits
from segwright.preprocessing.plan_validation import validate_components
from segwright.workspace import DATASET_JSON, PLANS_JSON, Workspace

logger = getLogger(__name__)

Folds = Literal["all"] | Sequence[int] | None
"""Fold numbers; "all": the network trained on all cases (`fold_all`), or without it every fold; None: every fold."""

MODEL_FOLDER: Final = "model_folder"
"""Argument of a network builder that is set to the folder from which the network is loaded."""

_FOLD_PREFIX = "fold_"
_ALL = "all"


class CheckpointFormat(Protocol):
    """Reads the checkpoints in a fold's folder."""

    def names(self, fold_folder: Path) -> list[str]:
        """Return which of final, best and latest exist completely."""
        ...

    def file(self, fold_folder: Path, checkpoint: str) -> Path:
        """Return the path of the weights."""
        ...

    def header(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Any]:
        """Return a document that fits `CheckpointHeader`."""
        ...

    def weights(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Tensor]:
        """Return the network's state dict."""
        ...


class OurCheckpoints:
    """`checkpoint_final.safetensors` with `checkpoint_final.json` beside it."""

    def names(self, fold_folder: Path) -> list[str]:
        """Return which of final, best and latest exist completely."""
        weights = {path.stem for path in fold_folder.glob("checkpoint_*.safetensors")}
        headers = {path.stem for path in fold_folder.glob("checkpoint_*.json")}
        return sorted(name.removeprefix("checkpoint_") for name in weights & headers)

    def file(self, fold_folder: Path, checkpoint: str) -> Path:
        """Return the path of the weights."""
        return fold_folder / f"checkpoint_{checkpoint}.safetensors"

    def header(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Any]:
        """Return the document beside the weights."""
        path = self.file(fold_folder, checkpoint).with_suffix(".json")
        document: Mapping[str, Any] = read_json(path)
        if isinstance(document, Mapping) and not has_valid_checksum(document):
            raise ModelError(
                f"{path}: damaged (its checksum does not match); copy it again or use another "
                "checkpoint; if it was edited on purpose, remove its line 'checksum'"
            )
        return document

    def weights(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Tensor]:
        """Return the network's state dict."""
        return load_weights(self.file(fold_folder, checkpoint))


OURS: Final = OurCheckpoints()


@fork_safe
def load_predictor(
    model_folder: Path,
    *,
    folds: Folds = None,
    checkpoint: str = "final",
    device: str = "auto",
    mirroring: bool = True,
    step: float = DEFAULT_STEP,
    precision: str = "auto",
    checkpoints: CheckpointFormat = OURS,
    trust: CodeTrust = TRUST_NONE,
    reuse: bool = True,
    later_stages: tuple[Path, ...] = (),
) -> Predictor:
    """Load the predictor of a model folder; the logits of its folds are averaged.

    Args:
        model_folder: has `plans.json`, `dataset.json` and `fold_k` with checkpoints.
        folds: whose networks are used.
        checkpoint: `final`, `best` or `latest`.
        device: auto, cpu, cuda, cuda:1 or mps.
        mirroring: average over the mirrored views that training allowed.
        step: distance of two tiles as a fraction of the patch.
        precision: auto, fp32, bf16 or fp16.
        checkpoints: reads them; Segwright's own by default.
        trust: code that the folder's files may import: a user's network, a class that is not one of nnU-Net's networks.
        reuse: compute tiles of one value once.
        later_stages: model folders of the later stages of this cascade, to find circles.

    Raises:
        ModelError: a file, a fold or a checkpoint is missing, or folds do not belong together.
    """
    target = resolve_device(device)
    _require_files(model_folder)
    chosen = choose_folds(model_folder, folds, checkpoint, checkpoints)
    folders = [Workspace.fold_folder(model_folder, fold) for fold in chosen]
    plan = Plan.load(model_folder / PLANS_JSON)
    description = load_description(model_folder / DATASET_JSON)
    headers = [_header(checkpoints, folder, checkpoint) for folder in folders]
    by_fold = dict(zip(chosen, headers, strict=True))
    require_one_model(by_fold, plan, description, model_folder)
    labels = Labels.from_description(description)
    if problem := decoding_problem(labels):
        logger.warning("%s, regions_class_order: %s", model_folder / DATASET_JSON, problem)
    configuration = plan.configuration(headers[0].configuration)
    if checkpoints is OURS:
        require_trained_plan(by_fold, plan, model_folder)
    elif folds_of_other_plans(by_fold, plan):  # nnU-Net accepts such a folder
        logger.warning(
            "%s: is not the plan that the model was trained with; predictions are good only if spacing, normalisation "
            "and orientation are the same",
            model_folder / PLANS_JSON,
        )
    validate_components(plan, configuration, trust=trust)
    require_mirror_axes(headers[0].mirror_axes, configuration, str(model_folder))
    networks = [
        _load_network(checkpoints, folder, checkpoint, header, configuration, description, labels, trust=trust)
        for folder, header in zip(folders, headers, strict=True)
    ]
    first = None
    if configuration.previous_stage is not None:
        folder = previous_stage_folder(model_folder, headers[0].configuration, configuration.previous_stage)
        if folder.resolve() in (stages := (*later_stages, model_folder.resolve())):
            raise ModelError(f"{model_folder}: the cascade refers back to {folder}; the plans are damaged")
        first = load_predictor(
            folder,
            device=device,
            mirroring=mirroring,
            step=step,
            precision=precision,
            checkpoints=checkpoints,
            trust=trust,
            reuse=reuse,
            later_stages=stages,
        )
    predictor = Predictor(
        networks,
        plan,
        configuration,
        labels,
        device=target,
        mirror_axes=(headers[0].mirror_axes or ()) if mirroring else (),
        swap_sides=headers[0].swap_sides,
        precision=precision,
        step=step,
        reuse=reuse,
        description=description,
        first=first,
        origin={
            "model": model_folder.name,
            "configuration": headers[0].configuration,
            "folds": list(chosen),
            "checkpoint": checkpoint,
            "model_hash": model_hash(
                [checkpoints.file(folder, checkpoint) for folder in folders],
                plan,
                description,
                headers[0].configuration,
            ),
        },
    )
    predictor.reliability = ReliabilityModel(training=training_range(model_folder, plan, configuration))
    return predictor


def choose_folds(
    model_folder: Path, folds: Folds, checkpoint: str, checkpoints: CheckpointFormat = OURS
) -> tuple[str, ...]:
    """Return the names ("0", "all") of the requested folds, which have the checkpoint.

    Raises:
        ModelError: a fold lacks it; the message lists the checkpoints of the folder.
    """
    available = {
        path.name.removeprefix(_FOLD_PREFIX): checkpoints.names(path)
        for path in sorted(model_folder.glob(f"{_FOLD_PREFIX}*"))
        if path.is_dir()
    }
    complete = [fold for fold, names in available.items() if checkpoint in names]
    numbered = sorted((fold for fold in complete if fold.isdecimal()), key=int)
    if folds is None:
        wanted = numbered or [fold for fold in complete if fold == _ALL]
    elif folds == _ALL:
        wanted = [_ALL] if _ALL in complete else numbered
    else:
        wanted = list(dict.fromkeys(str(fold) for fold in folds))
    missing = [fold for fold in wanted if fold not in complete]
    if missing or not wanted:
        requested = f"fold {', '.join(missing)}" if missing else "any fold"
        listed = "; ".join(f"fold {fold}: {', '.join(names) or 'none'}" for fold, names in available.items())
        raise ModelError(
            f"{model_folder}: no '{checkpoint}' checkpoint for {requested}; "
            + (
                f"available: {listed}; choose among these or finish the training"
                if listed
                else "no fold is trained here"
            )
        )
    return tuple(wanted)


def require_folds(model_folder: Path, folds: Sequence[int | str]) -> None:
    """Check that trained folds of a model folder belong to one model.

    Raises:
        ModelError: they do not, or a document is missing or damaged.
    """
    plan, description = Plan.load(model_folder / PLANS_JSON), load_description(model_folder / DATASET_JSON)
    headers = {str(fold): _header(OURS, Workspace.fold_folder(model_folder, fold), "final") for fold in folds}
    require_one_model(headers, plan, description, model_folder)
    require_trained_plan(headers, plan, model_folder)


def _require_files(model_folder: Path) -> None:
    if not require_text_path(model_folder).is_dir():
        raise ModelError(f"{model_folder}: no such model folder; expected plans.json, dataset.json and fold_k in it")
    missing = [name for name in (PLANS_JSON, DATASET_JSON) if not (model_folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{model_folder}: {' and '.join(missing)} missing; a model folder has plans.json, dataset.json and fold_k"
        )


def _header(checkpoints: CheckpointFormat, fold_folder: Path, checkpoint: str) -> CheckpointHeader:
    path = checkpoints.file(fold_folder, checkpoint).with_suffix(".json")
    try:
        return parse_header(checkpoints.header(fold_folder, checkpoint), path)
    except SegwrightError as error:
        raise ModelError(str(error)) from error


def require_mirror_axes(axes: Sequence[int] | None, configuration: Configuration, where: str) -> None:
    """Check that the mirror axes of a checkpoint are axes of its patches.

    Raises:
        ModelError: they are not.
    """
    known = range(configuration.dims)
    if axes is not None and (len(set(axes)) < len(axes) or not set(axes) <= set(known)):
        raise ModelError(f"{where}: mirror axes {list(axes)}; expected some of {[*known]} for this plan, each once")


def _load_network(
    checkpoints: CheckpointFormat,
    fold_folder: Path,
    checkpoint: str,
    header: CheckpointHeader,
    configuration: Configuration,
    description: DatasetDescription,
    labels: Labels,
    *,
    trust: CodeTrust,
) -> nn.Module:
    num_channels = configuration.num_input_channels(len(description.channel_names), len(labels.foreground_labels))
    architecture = configuration.architecture.model_dump(by_alias=True)
    source = str(checkpoints.file(fold_folder, checkpoint))
    weights = checkpoints.weights(fold_folder, checkpoint)
    require_weights(
        header.network,
        architecture,
        num_channels,
        labels.num_heads,
        configuration.patch_size,
        weights,
        source=source,
    )
    network = build_from_spec(
        _with_folder(header.network, fold_folder.parent),
        architecture,
        num_channels,
        labels.num_heads,
        configuration.patch_size,
        False,
        trust=trust,
        source=str(checkpoints.file(fold_folder, checkpoint).with_suffix(".json")),
    )
    load_state(network, weights, source=source)
    if header.network.logits_of is not None:
        return_logits(network, load_logits_of(header.network.logits_of, trust, source=source))
    return network.eval()


def _with_folder(spec: ArchitectureSpec, model_folder: Path) -> ArchitectureSpec:
    """Return the spec with the model folder in place of a `model_folder` argument: a builder may need files in it."""
    if MODEL_FOLDER not in spec.kwargs:
        return spec
    return replace(spec, kwargs={**spec.kwargs, MODEL_FOLDER: str(model_folder)})
