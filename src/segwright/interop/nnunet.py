"""nnU-Net v2's trained model folders, converted into ours: safetensors and JSON instead of pickles.

A `.pth` file is read by torch's restricted unpickler, which builds tensors and plain containers, and beside them only
the numpy scalars that nnU-Net logs (spec B 1.6). Whatever else a file asks for is refused by its name and never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from segwright.core.documents import read_json, write_json
from segwright.core.errors import ModelError
from segwright.data.plan import Plan
from segwright.networks.build import ArchitectureSpec
from segwright.networks.checkpoint import drop_aliases, save_weights
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON

CHECKPOINT = "checkpoint_final.pth"
SCHEMA_VERSION = 1

_NUMPY_SCALARS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "bool")),
]


def is_nnunet_model(folder: Path) -> bool:
    """Whether a folder holds folds trained by nnU-Net."""
    return (folder / PLANS_JSON).is_file() and any(folder.glob(f"fold_*/{CHECKPOINT}"))


def import_model(source: Path, target: Path) -> tuple[Path, ...]:
    """Convert every trained fold of an nnU-Net model folder and return the new fold folders.

    Args:
        source: `<Trainer>__<plans>__<configuration>`; only read.
        target: our model folder; `segwright predict --model` takes it.

    Raises:
        ModelError: no fold is trained, or a checkpoint is damaged or holds more than weights and plain values.
    """
    if not is_nnunet_model(source):
        raise ModelError(f"{source}: no nnU-Net model; expected {PLANS_JSON} and fold_0/{CHECKPOINT} in it")
    folds = sorted(source.glob(f"fold_*/{CHECKPOINT}"))
    checkpoints = {path.parent.name: read_checkpoint(path) for path in folds}
    plan = Plan.load(source / PLANS_JSON)
    plan.save(target / PLANS_JSON)
    for name in (DATASET_JSON, FINGERPRINT_JSON):
        if (source / name).is_file():
            write_json(target / name, read_json(source / name), indent=4)
    return tuple(_write_fold(target / name, checkpoint, plan) for name, checkpoint in checkpoints.items())


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


def _write_fold(folder: Path, checkpoint: Mapping[str, Any], plan: Plan) -> Path:
    configuration = str(checkpoint["init_args"]["configuration"])
    architecture = plan.configuration(configuration).architecture.model_dump(by_alias=True)
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    path = folder / "checkpoint_final.safetensors"
    save_weights(path, drop_aliases(checkpoint["network_weights"]))
    header = {
        "schema_version": SCHEMA_VERSION,
        "trainer": checkpoint["trainer_name"],
        "configuration": configuration,
        "fold": checkpoint["init_args"]["fold"],
        "network": ArchitectureSpec.from_plan(architecture).to_json(),
        "mirror_axes": None if axes is None else [int(axis) for axis in axes],
        "epoch": int(checkpoint.get("current_epoch", 0)),
    }
    write_json(path.with_suffix(".json"), header)
    return folder
