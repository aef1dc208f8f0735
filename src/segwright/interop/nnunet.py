"""nnU-Net v2's trained model folders, converted into ours: safetensors and JSON instead of pickles.

A `.pth` file is read by torch's restricted unpickler, which builds tensors and plain containers, and beside them only
the numpy scalars that nnU-Net logs (spec B 1.6). Whatever else a file asks for is refused by its name and never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from segwright.core.documents import atomic_path, read_json, write_json
from segwright.core.errors import ModelError, WorkspaceError
from segwright.data.plan import Plan
from segwright.networks.architecture import parse_architecture
from segwright.networks.build import ArchitectureSpec
from segwright.networks.checkpoint import drop_aliases, save_weights
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON

KINDS: Final = ("final", "best", "latest")
SCHEMA_VERSION = 1

_NUMPY_SCALARS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "bool")),
]


def is_nnunet_model(folder: Path) -> bool:
    """Whether a folder holds folds trained by nnU-Net."""
    return (folder / PLANS_JSON).is_file() and any(folder.glob("fold_*/checkpoint_*.pth"))


class NnunetCheckpoints:
    """`checkpoint_final.pth` in a fold's folder, for `inference.model_folder.load_predictor`."""

    def __init__(self) -> None:
        self._last: tuple[Path, Mapping[str, Any]] | None = None

    def names(self, fold_folder: Path) -> list[str]:
        """Return which of final, best and latest are there."""
        return sorted(kind for kind in KINDS if self.file(fold_folder, kind).is_file())

    def file(self, fold_folder: Path, checkpoint: str) -> Path:
        """Return the file of the weights."""
        return fold_folder / f"checkpoint_{checkpoint}.pth"

    def header(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Any]:
        """Return what our checkpoints say beside the weights."""
        plan = Plan.load(fold_folder.parent / PLANS_JSON)
        return header_of(self._read(self.file(fold_folder, checkpoint)), plan)

    def weights(self, fold_folder: Path, checkpoint: str) -> Mapping[str, Tensor]:
        """Return the network's state dict."""
        weights: Mapping[str, Tensor] = self._read(self.file(fold_folder, checkpoint))["network_weights"]
        return weights

    def _read(self, path: Path) -> Mapping[str, Any]:
        if self._last is None or self._last[0] != path:
            self._last = path, read_checkpoint(path)
        return self._last[1]


def import_model(source: Path, target: Path) -> tuple[Path, ...]:
    """Convert every trained fold of an nnU-Net model folder and return the new fold folders.

    Args:
        source: `<Trainer>__<plans>__<configuration>`; only read.
        target: our model folder, which is new; `segwright predict --model` takes it.

    Raises:
        ModelError: no fold is trained, or a checkpoint is damaged or holds more than weights and plain values.
        WorkspaceError: the target is there already.
    """
    if not is_nnunet_model(source):
        raise ModelError(f"{source}: no nnU-Net model; expected {PLANS_JSON} and fold_0/checkpoint_final.pth in it")
    if target.exists():
        raise WorkspaceError(f"{target}: is there already; choose a new folder")
    plan = Plan.load(source / PLANS_JSON)
    for configuration in {header_of(read_checkpoint(path), plan)["configuration"] for path in _files(source)}:
        architecture = plan.configuration(configuration).architecture
        parse_architecture(architecture.network_class_name, architecture.arch_kwargs)  # before anything is written
    with atomic_path(target) as temporary:
        plan.save(temporary / PLANS_JSON)
        for name in (DATASET_JSON, FINGERPRINT_JSON):
            if (source / name).is_file():
                write_json(temporary / name, read_json(source / name), indent=4)
        for path in _files(source):
            _write_checkpoint(read_checkpoint(path), plan, temporary / path.parent.name / path.stem)
    return tuple(sorted(target.glob("fold_*")))


def _files(source: Path) -> list[Path]:
    """Return the checkpoints that are converted; the latest of an interrupted training cannot be resumed here."""
    return [path for kind in KINDS for path in sorted(source.glob(f"fold_*/checkpoint_{kind}.pth"))]


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return the content of a `.pth` file of nnU-Net, tensors on the CPU.

    Raises:
        ModelError: it is damaged, asks for other objects than tensors and plain values, or lacks the expected keys.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # The first line names what was asked for; the rest is torch's advice on how to run it after all.
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), "not a checkpoint").strip()
        raise ModelError(f"{path}: refused, since it is not only weights and plain values ({reason})") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); copy it again") from error
    missing = {"network_weights", "init_args", "trainer_name"} - set(checkpoint)
    if missing:
        raise ModelError(f"{path}: not an nnU-Net checkpoint, it lacks {', '.join(sorted(missing))}")
    return dict(checkpoint)


def header_of(checkpoint: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return what our checkpoints say beside the weights.

    Raises:
        ModelError: the file's own description is not that of a training.
    """
    arguments = checkpoint["init_args"]
    if not isinstance(arguments, Mapping) or not {"configuration", "fold"} <= set(arguments):
        raise ModelError("init_args of the checkpoint lacks configuration and fold; it was not written by nnU-Net")
    configuration = str(arguments["configuration"])
    architecture = plan.configuration(configuration).architecture.model_dump(by_alias=True)
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    return {
        "schema_version": SCHEMA_VERSION,
        "trainer": checkpoint["trainer_name"],
        "configuration": configuration,
        "fold": arguments["fold"],
        "network": ArchitectureSpec.from_plan(architecture).to_json(),
        "mirror_axes": None if axes is None else [int(axis) for axis in axes],
        "epoch": int(checkpoint.get("current_epoch", 0)),
    }


def _write_checkpoint(checkpoint: Mapping[str, Any], plan: Plan, stem: Path) -> None:
    save_weights(stem.with_suffix(".safetensors"), drop_aliases(checkpoint["network_weights"]))
    write_json(stem.with_suffix(".json"), header_of(checkpoint, plan))
