"""Import trained model folders of nnU-Net v2: convert `.pth` pickles to safetensors and JSON.

A `.pth` file is read by `interop.torchfile`, which builds plain values and tensors (nnU-Net behaviour 8.4). Whatever
else a file asks for is refused by its name and never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from segwright.core.errors import ModelError, WorkspaceError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import content_hash
from segwright.core.files.json_documents import read_json, with_checksum, write_json
from segwright.data.description import DatasetDescription, load_description
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.interop.instructions import StoredTensor
from segwright.interop.torchfile import read_document, read_tensors
from segwright.networks.architecture import parse_architecture
from segwright.networks.build import ArchitectureSpec, require_weights
from segwright.networks.checkpoint import drop_aliases, save_weights
from segwright.preprocessing.plan_validation import validate_components
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON

KINDS: Final = ("final", "best", "latest")
SCHEMA_VERSION = 1


def is_nnunet_model(folder: Path) -> bool:
    """Whether a folder holds folds trained by nnU-Net; a trainer file may write such files beside our checkpoints."""
    has_own = any(folder.glob("fold_*/checkpoint_*.safetensors"))
    return (folder / PLANS_JSON).is_file() and not has_own and any(folder.glob("fold_*/checkpoint_*.pth"))


class NnunetCheckpoints:
    """`checkpoint_final.pth` in a fold's folder, for `inference.model_folder.load_predictor`."""

    def names(self, fold_folder: Path) -> list[str]:
        """Return which of final, best and latest are there."""
        return sorted(kind for kind in KINDS if self.file(fold_folder, kind).is_file())

    def file(self, fold_folder: Path, checkpoint: str) -> Path:
        """Return the file of the weights."""
        return fold_folder / f"checkpoint_{checkpoint}.pth"

    def header(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Any]:
        """Return a document that fits `CheckpointHeader`."""
        plan = Plan.load(fold_folder.parent / PLANS_JSON)
        path = self.file(fold_folder, checkpoint)
        return header_of(_describe(path), plan, path)

    def weights(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Tensor]:
        """Return the network's state dict."""
        weights: Mapping[str, Tensor] = read_checkpoint(self.file(fold_folder, checkpoint))["network_weights"]
        return weights


def import_model(source: Path, target: Path, *, nested: Mapping[str, Path] | None = None) -> tuple[Path, ...]:
    """Convert every trained fold of an nnU-Net model folder and return the new fold folders.

    Args:
        source: `<Trainer>__<plans>__<configuration>`; never written to.
        target: the new model folder, for `segwright predict --model`.
        nested: nnU-Net models to convert to folders inside the new one, by the name of that folder.

    Raises:
        ModelError: no fold is trained, or a checkpoint is damaged, does not fit the plan, or holds more than weights
            and plain values.
        PlanError: the plan needs components that are unknown here.
        WorkspaceError: the target already exists.
    """
    models = {"": source, **(nested or {})}
    for model in models.values():
        if not is_nnunet_model(model):
            raise ModelError(
                f"{model}: not an nnU-Net model; expected {PLANS_JSON} and fold_0/checkpoint_final.pth in it"
            )
    if target.exists():
        raise WorkspaceError(f"{target}: already exists; choose a new folder")
    for model in models.values():
        _require_convertible(model)
    with atomic_path(target) as temporary:
        for name, model in models.items():
            _convert(model, temporary / name)
    return tuple(sorted(target.glob("fold_*")))


def configuration_of(source: Path) -> str:
    """Return the configuration that an nnU-Net model was trained with.

    Raises:
        ModelError: no fold is trained, or a checkpoint is not one of nnU-Net's.
    """
    files = _files(source)
    if not files:
        raise ModelError(f"{source}: not an nnU-Net model; expected {PLANS_JSON} and fold_0/checkpoint_final.pth in it")
    return str(header_of(_describe(files[0]), Plan.load(source / PLANS_JSON), files[0])["configuration"])


def _require_convertible(source: Path) -> None:
    """Check that plan, dataset.json and checkpoints fit together, before anything is written."""
    plan = Plan.load(source / PLANS_JSON)
    description = load_description(source / DATASET_JSON)
    labels = Labels.from_description(description)
    for path in _files(source):
        checkpoint = _describe(path)
        header = header_of(checkpoint, plan, path)
        configuration = plan.configuration(header["configuration"])
        validate_components(plan, configuration)
        architecture = configuration.architecture
        parse_architecture(architecture.network_class_name, architecture.arch_kwargs)
        require_weights(
            ArchitectureSpec.from_json(header["network"]),
            architecture.model_dump(by_alias=True),
            configuration.num_input_channels(len(description.channel_names), len(labels.foreground_labels)),
            labels.num_heads,
            configuration.patch_size,
            {name: _outline(tensor, name, path) for name, tensor in checkpoint["network_weights"].items()},
            source=str(path),
        )


def _outline(tensor: StoredTensor, name: str, path: Path) -> Tensor:
    try:
        return tensor.outline()
    except ModelError as error:
        raise ModelError(f"{path}: refused, '{name}': {error}") from error


def _convert(source: Path, target: Path) -> None:
    plan = Plan.load(source / PLANS_JSON)
    plan.save(target / PLANS_JSON)
    for name in (DATASET_JSON, FINGERPRINT_JSON):
        if (source / name).is_file():
            write_json(target / name, read_json(source / name), indent=4)
    headers: dict[Path, dict[str, Any]] = {}
    for path in _files(source):
        checkpoint, stem = read_checkpoint(path), target / path.parent.name / path.stem
        save_weights(stem.with_suffix(".safetensors"), drop_aliases(checkpoint["network_weights"]))
        headers[stem.with_suffix(".json")] = header_of(checkpoint, plan, path)
    if len({header.get("setup_hash") for header in headers.values()}) == 1:  # the plan that nnU-Net predicts with
        for header in headers.values():
            header["setup_hash"] = plan.setup_hash(header["configuration"])
    for path, header in headers.items():
        write_json(path, with_checksum(header))


def _files(source: Path) -> list[Path]:
    """Return the checkpoints to convert; an interrupted training cannot be resumed from its latest one."""
    return [path for kind in KINDS for path in sorted(source.glob(f"fold_*/checkpoint_{kind}.pth"))]


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return the content of a `.pth` file of nnU-Net, weights on the CPU; the optimiser's tensors are not read.

    Raises:
        ModelError: it is damaged, has other objects than tensors and plain values, lacks expected keys, or has weights
            that are NaN or infinite.
    """
    checkpoint = _describe(path)
    weights = read_tensors(path, checkpoint["network_weights"])
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path}: '{name}' has NaN or infinite weights; the training failed, use another checkpoint"
            )
    return {**checkpoint, "network_weights": weights}


def _describe(path: Path) -> dict[str, Any]:
    """Return the content of a `.pth` file with `StoredTensor`s instead of tensors."""
    checkpoint = read_document(path)
    if not isinstance(checkpoint, Mapping):
        raise ModelError(f"{path}: not an nnU-Net checkpoint, but a {type(checkpoint).__name__}")
    missing = {"network_weights", "init_args", "trainer_name"} - set(checkpoint)
    if missing:
        raise ModelError(f"{path}: not an nnU-Net checkpoint, it lacks {', '.join(sorted(missing))}")
    weights = checkpoint["network_weights"]
    if not isinstance(weights, Mapping):
        raise ModelError(f"{path}: network_weights is a {type(weights).__name__}; expected tensors by name")
    wrong = [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, StoredTensor))]
    if wrong:
        raise ModelError(f"{path}: network_weights has '{str(wrong[0])[:80]}', which is no tensor")
    return dict(checkpoint)


def header_of(checkpoint: Mapping[str, Any], plan: Plan, path: Path) -> dict[str, Any]:
    """Return the JSON document that a Segwright checkpoint has beside the weights.

    Raises:
        ModelError: the file does not describe a training.
        PlanError: the plan has no such configuration, or it is damaged.
    """
    arguments = checkpoint["init_args"]
    if not isinstance(arguments, Mapping) or not {"configuration", "fold"} <= set(arguments):
        raise ModelError(f"{path}: init_args lacks configuration and fold; it was not written by nnU-Net")
    name, fold, epoch = arguments["configuration"], arguments["fold"], checkpoint.get("current_epoch", 0)
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    for what, value, fits in (
        ("init_args.configuration", name, type(name) is str),
        ("init_args.fold", fold, type(fold) is int or fold == "all" or (type(fold) is str and fold.isdecimal())),
        ("trainer_name", checkpoint["trainer_name"], type(checkpoint["trainer_name"]) is str),
        ("current_epoch", epoch, type(epoch) is int),
        ("inference_allowed_mirroring_axes", axes, axes is None or _are_integers(axes)),
    ):
        if not fits:
            raise ModelError(f"{path}: {what} is {_shown(value)}; it was not written by nnU-Net")
    configuration = plan.configuration(name)
    if axes is not None and not set(axes) <= set(range(configuration.dims)):
        raise ModelError(
            f"{path}: inference_allowed_mirroring_axes is {list(axes)}; a patch has axes 0 to {configuration.dims - 1}"
        )
    architecture = configuration.architecture.model_dump(by_alias=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "trainer": checkpoint["trainer_name"],
        "configuration": name,
        "fold": fold,
        "network": ArchitectureSpec.from_plan(architecture).to_json(),
        "mirror_axes": None if axes is None else sorted(set(axes)),
        "epoch": epoch,
        **_hashes(arguments),
    }


def _hashes(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return hashes of plan and labels that a fold was trained with; none if they cannot be read."""
    try:
        plan, description = (
            Plan.from_json(arguments["plans"]),
            DatasetDescription.model_validate(arguments["dataset_json"]),
        )
        return {
            "setup_hash": plan.setup_hash(arguments["configuration"]),
            "dataset_hash": content_hash(description.meaning()),
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _are_integers(values: object) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is int for value in values)


def _shown(value: object) -> str:
    """Return a value for a message; the text of a container could be endless."""
    return repr(value)[:80] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
