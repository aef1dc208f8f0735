"""Checkpoints that a trainer file saves and loads itself: nnU-Net's names, its torch files, its dicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import torch

from segwright.compat.nnunet.trainer import nnUNetTrainer
from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import atomic_path
from segwright.interop.nnunet import read_checkpoint
from segwright.networks.checkpoint import load_state, strip_wrappers
from segwright.training.checkpointing import checkpoints
from segwright.training.trainer import Trainer

_NAME: Final = "checkpoint_"


def checkpoint_kind(path: Path) -> checkpoints.Kind | None:
    """Return which of our checkpoints has the name of one of nnU-Net's; None for any other name.

    >>> checkpoint_kind(Path("fold_0/checkpoint_best.pth")), checkpoint_kind(Path("epoch_10.pth"))
    ('best', None)
    """
    kinds: tuple[checkpoints.Kind, ...] = get_args(checkpoints.Kind)
    return next((kind for kind in kinds if path.stem == f"{_NAME}{kind}"), None)


def write_torch_file(path: Path, user: nnUNetTrainer) -> None:
    """Write a file of `torch.save` with the keys of nnU-Net's checkpoints."""
    scaler = user.grad_scaler
    document = {
        "network_weights": {strip_wrappers(name): value for name, value in user.network.state_dict().items()},
        "optimizer_state": user.optimizer.state_dict(),
        "grad_scaler_state": None if scaler is None else scaler.state_dict() or None,
        "logging": user.logger.get_checkpoint(),
        "_best_ema": user._best_ema,
        "current_epoch": user.current_epoch + 1,
        "init_args": user.my_init_kwargs,
        "trainer_name": type(user).__name__,
        "inference_allowed_mirroring_axes": user.inference_allowed_mirroring_axes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(document, temporary)


def load_into(run: Trainer, user: nnUNetTrainer, source: str | Path | Mapping[str, Any]) -> None:
    """Load a checkpoint into a training that goes on: the weights, and from a dict also what else it has.

    Args:
        run: the training.
        user: the object of the trainer file.
        source: a dict of nnU-Net's, its file, or a file name under which our own checkpoint was saved.

    Raises:
        ModelError: there is no such file, it is damaged, or belongs to another network.
    """
    if isinstance(source, Mapping):
        _load_document(user, source)
        return
    path, kind = Path(source), checkpoint_kind(Path(source))
    own = path.with_suffix(".safetensors")
    if path.suffix != own.suffix and path.is_file():
        load_state(run.network, read_checkpoint(path)["network_weights"], source=str(path))
    elif kind is not None and own.is_file():
        load_state(run.network, checkpoints.load(own).weights, source=str(own))
    else:
        raise ModelError(f"{path}: no such checkpoint; {type(user).__name__} saves it before it is loaded")
    run.print_to_log_file(f"weights of {path.name} loaded; optimizer and epoch are those of the running training")


def _load_document(user: nnUNetTrainer, document: Mapping[str, Any]) -> None:
    weights = {strip_wrappers(name): value for name, value in document["network_weights"].items()}
    load_state(user.network, weights, source="the checkpoint given to load_checkpoint")
    if document.get("optimizer_state") is not None:
        user.optimizer.load_state_dict(document["optimizer_state"])
    if document.get("grad_scaler_state") is not None and user.grad_scaler is not None:
        user.grad_scaler.load_state_dict(document["grad_scaler_state"])
    if "logging" in document:
        user.logger.load_checkpoint(document["logging"])
    user._best_ema = document.get("_best_ema", user._best_ema)
    user.current_epoch = document.get("current_epoch", user.current_epoch)
    axes = document.get("inference_allowed_mirroring_axes", user.inference_allowed_mirroring_axes)
    user.inference_allowed_mirroring_axes = axes
