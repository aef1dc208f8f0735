"""Export a trained model as a model folder of nnU-Net v2: `.pth` checkpoints, and plans with the trained network."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from segwright.core.errors import ConfigError, ModelError, SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers, temporary_folder
from segwright.core.files.json_documents import parse_document, read_checked_json, write_json
from segwright.core.files.zip_files import write_zip
from segwright.data.description import DatasetDescription, load_description
from segwright.data.images.image_io import files_beside
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs
from segwright.data.plan import KW_REQUIRES_IMPORT, Plan
from segwright.networks.build import build_from_spec, nnunet_spec
from segwright.networks.checkpoint import add_aliases, load_state, load_weights
from segwright.networks.folds import CheckpointHeader, require_one_model, require_trained_plan
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON, SUMMARY_JSON

CHECKPOINT_JSON: Final = "checkpoint_final.json"
CHECKPOINT_PTH: Final = "checkpoint_final.pth"

VALIDATION: Final = "validation"
_ALL: Final = "fold_all"
"""The folder of a fold without held-out cases."""

TRAINER: Final = "nnUNetTrainer"
"""Class that nnU-Net looks up to build the network; its default trainer follows the architecture in the plans."""

LOGGER_KEYS: Final = (
    *("mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "train_losses"),
    *("val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps"),
)
"""Lists of nnU-Net's logger (nnU-Net behaviour 8.3)."""


class _Header(CheckpointHeader):
    """The parts of a checkpoint's header that nnU-Net's checkpoints have too."""

    fold: int | str
    epoch: int = 0
    logging: tuple[dict[str, Any], ...] = ()
    best_ema: float | None = None


def export_model(
    model: Path, target: Path, *, folds: Sequence[str] | None = None, with_validation: bool = False
) -> tuple[str, ...]:
    """Write a model folder for nnU-Net v2 and return the folds in it.

    Args:
        model: Segwright model folder, with `plans.json`, `dataset.json` and `fold_k/checkpoint_final.safetensors`.
        target: the new model folder; `name.zip` for an archive for `nnUNetv2_install_pretrained_model_from_zip`.
        folds: names of the folds; by default all that are trained.
        with_validation: also copy the predictions of held-out cases and their `summary.json`.

    Raises:
        ModelError: nothing is trained, folds are of different models, nnU-Net cannot build the network, or held-out
            cases are not predicted.
        WorkspaceError: the target already exists.
    """
    headers = _headers(model, folds)
    validations = {fold: _validation_files(model / fold) for fold in headers if with_validation and fold != _ALL}
    if target.exists():
        raise WorkspaceError(f"{target}: already exists; choose a new path")
    plan, description = Plan.load(model / PLANS_JSON), load_description(model / DATASET_JSON)
    by_fold = {name.removeprefix("fold_"): header for name, header in headers.items()}
    require_one_model(by_fold, plan, description, model)
    require_trained_plan(by_fold, plan, model)
    name = next(iter(headers.values())).configuration
    plans = _nnunet_plans(plan, name, next(iter(headers.values())))
    folder = target if target.suffix != ".zip" else target.with_suffix(".folder")
    sweep_leftovers(target.parent, {target.name, folder.name})
    with atomic_path(target) as temporary:
        if folder == target:
            _write_folder(temporary, model, headers, plan, plans, description)
            _copy_validations(validations, temporary)
        else:
            with temporary_folder(folder) as scratch:
                _write_folder(scratch, model, headers, plan, plans, description)
                _copy_validations(validations, scratch)
                write_zip(scratch, temporary, prefix=f"{plan.dataset_name}/{TRAINER}__{plan.plans_name}__{name}")
    return tuple(headers)


def write_checkpoint(fold: Path) -> Path:
    """Write the final checkpoint of a Segwright fold for nnU-Net beside it, and return the file.

    Raises:
        ModelError: the fold is not trained, or nnU-Net cannot build the network.
    """
    model = fold.parent
    [header] = _headers(model, [fold.name.removeprefix("fold_")]).values()
    plan, description = Plan.load(model / PLANS_JSON), load_description(model / DATASET_JSON)
    plans = _nnunet_plans(plan, header.configuration, header)
    file = fold / CHECKPOINT_PTH
    with atomic_path(file) as temporary:
        torch.save(_checkpoint(fold, header, plan, plans, description), temporary)
    return file


def _write_folder(
    folder: Path,
    model: Path,
    headers: Mapping[str, _Header],
    plan: Plan,
    plans: dict[str, Any],
    description: DatasetDescription,
) -> None:
    write_json(folder / PLANS_JSON, plans, indent=4)
    write_json(folder / DATASET_JSON, description.raw(), indent=4)
    if (model / FINGERPRINT_JSON).is_file():
        write_json(folder / FINGERPRINT_JSON, read_checked_json(model / FINGERPRINT_JSON), indent=4)
    for fold, header in headers.items():
        (folder / fold).mkdir()
        torch.save(_checkpoint(model / fold, header, plan, plans, description), folder / fold / CHECKPOINT_PTH)


def _validation_files(fold: Path) -> list[Path]:
    """Return the predictions of a fold's held-out cases, and their scores.

    Raises:
        ModelError: there are none.
    """
    folder = fold / VALIDATION
    if not (folder / SUMMARY_JSON).is_file():
        raise ModelError(f"{folder}: has no {SUMMARY_JSON}; validate the fold, or export without its validation")
    ending = load_description(fold.parent / DATASET_JSON).file_ending
    labels = sorted(file for file in folder.glob(f"[!.]*{ending}") if file.is_file())
    return [folder / SUMMARY_JSON, *labels, *(each for file in labels for each in files_beside(file))]


def _copy_validations(validations: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Copy the files of each fold's validation into a model folder."""
    for fold, files in validations.items():
        (target / fold / VALIDATION).mkdir()
        for file in files:
            shutil.copyfile(file, target / fold / VALIDATION / file.name)


def _headers(model: Path, folds: Sequence[str] | None) -> dict[str, _Header]:
    """Read the headers of the final checkpoints, by the name of the fold's folder.

    Raises:
        ModelError: a requested fold, or every fold, has none, or one is damaged.
    """
    names = [f"fold_{fold}" for fold in folds] if folds else sorted(path.name for path in model.glob("fold_*"))
    files = {name: model / name / CHECKPOINT_JSON for name in names}
    missing = [name for name, file in files.items() if not file.is_file()]
    try:
        headers = {name: parse_document(_Header, file) for name, file in files.items() if file.is_file()}
    except SegwrightError as error:
        raise ModelError(str(error)) from error
    if not headers or (folds and missing):
        raise ModelError(f"{model}: no finished training in {', '.join(missing) or 'it'}; give a Segwright model")
    return headers


def _nnunet_plans(plan: Plan, name: str, header: _Header) -> dict[str, Any]:
    """Return nnU-Net's plans with the trained network."""
    configuration = plan.configuration(name)
    architecture = configuration.architecture.model_dump(by_alias=True)
    spec = header.network
    try:
        resolved = nnunet_spec(spec, architecture, configuration.patch_size)
    except ConfigError as error:
        raise ModelError(f"network '{spec.reference}' cannot be exported: {error}") from error
    document = plan.to_json()
    document["configurations"][name]["architecture"] = {
        "network_class_name": resolved.reference,
        "arch_kwargs": dict(resolved.kwargs),
        "_kw_requires_import": list(KW_REQUIRES_IMPORT),
    }
    return document


def _mirror_axes(header: _Header, plan: Plan) -> list[int]:
    """Return the axes that nnU-Net may mirror: not lateral ones, since it cannot swap left and right labels."""
    sides = LabelPairs.of_plan(plan) if header.swap_sides else None
    lateral = sides.in_patch(plan.configuration(header.configuration).dims) if sides else ()
    return [axis for axis in header.mirror_axes or () if axis not in lateral]


def _checkpoint(
    fold: Path, header: _Header, plan: Plan, plans: dict[str, Any], description: DatasetDescription
) -> dict[str, Any]:
    """Return the content of an nnU-Net checkpoint (nnU-Net behaviour 8.4), without optimiser state."""
    configuration = plan.configuration(header.configuration)
    labels = Labels.from_description(description)
    channels = configuration.num_input_channels(len(description.channel_names), len(labels.foreground_labels))
    network = build_from_spec(
        header.network,
        configuration.architecture.model_dump(by_alias=True),
        channels,
        labels.num_heads,
        configuration.patch_size,
        True,
    )
    weights = fold / "checkpoint_final.safetensors"
    load_state(network, load_weights(weights), source=str(weights))
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    axes = _mirror_axes(header, plan)
    return {
        "network_weights": OrderedDict(add_aliases(state, network)),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {name: [row.get(name) for row in header.logging] for name in LOGGER_KEYS},
        "_best_ema": header.best_ema,
        "current_epoch": header.epoch,
        "init_args": {
            "plans": plans,
            "configuration": header.configuration,
            "fold": header.fold,
            "dataset_json": description.raw(),
            "device": torch.device("cpu"),
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": tuple(axes) if axes else None,
    }
