"""`train.json`: what was run, with which settings, on what, by which versions; `debug.json`: everything, as text."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import segwright
from segwright.core.device import compute_dtype
from segwright.core.files.atomic_io import write_json
from segwright.training.config import TrainConfig
from segwright.workspace import DATASET_JSON, PLANS_JSON

if TYPE_CHECKING:
    from segwright.training.trainer import Trainer

TRAIN_JSON = "train.json"
DEBUG_JSON = "debug.json"
SCHEMA_VERSION = 1

_COMMIT = re.compile(r"[0-9a-f]{40}")


def write_documents(trainer: Trainer) -> None:
    """Put plan and dataset description beside the folds, and the record of this run into the fold's folder."""
    model = trainer.output_folder.parent
    trainer.plans.save(model / PLANS_JSON)
    write_json(model / DATASET_JSON, trainer.dataset_json.raw(), indent=4)
    record = train_record(trainer.config, trainer.device, notes=trainer.notes, identity=trainer.identity())
    write_json(trainer.output_folder / TRAIN_JSON, record)
    write_json(trainer.output_folder / DEBUG_JSON, debug_document(trainer), sort_keys=True)


def debug_document(trainer: Trainer) -> dict[str, str]:
    """Return everything a trainer holds as text, its network layer by layer, and the machine.

    nnU-Net behaviour 8.2.
    """
    values = {name: str(value) for name, value in vars(trainer).items() if not name.startswith("_")}
    accelerator = trainer.device.type not in ("cpu", "mps")
    return {
        **values,
        "hostname": platform.node(),
        "gpu_name": torch.cuda.get_device_name(trainer.device) if accelerator else "None",
        "cudnn_version": str(torch.backends.cudnn.version()) if accelerator else "None",  # type: ignore[no-untyped-call]
        "torch_version": torch.__version__,
    }


def opening_lines(trainer: Trainer) -> list[str]:
    """Return what the log says at the start: what is trained, for how long, on what; why settings are as they are."""
    budget = trainer.config.budget_s
    length = f"{trainer.num_epochs} epochs" if budget is None else f"{budget:.0f} s"
    begin = "training" if trainer.current_step == 0 else f"resuming at epoch {trainer.current_epoch} of"
    return [
        f"{begin} {trainer.configuration_name}, fold {trainer.fold}: {length}, {len(trainer.split.train)} cases, batch "
        f"size {trainer.batch_size}, patch {trainer.configuration.patch_size}, on {trainer.device}",
        *trainer.notes,
    ]


def train_record(
    config: TrainConfig, device: torch.device, *, notes: Sequence[str], identity: dict[str, Any]
) -> dict[str, Any]:
    """Return the document.

    Args:
        config: the settings in force.
        device: where the network is trained.
        notes: why settings differ from the defaults.
        identity: trainer, dataset, plans, configuration, fold, cases.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **identity,
        "config": config.model_dump(mode="json"),
        "notes": list(notes),
        "seed": config.seed,
        "device": str(device),
        "compute_dtype": str(compute_dtype(device, config.precision)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {
            "segwright": segwright.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "git_commit": git_commit(Path(segwright.__file__).parents[2]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit that a source checkout is at, read from its files; None outside a checkout."""
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head if _COMMIT.fullmatch(head) else None
        reference = head.removeprefix("ref: ")
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="ascii").strip()
        packed = (git / "packed-refs").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = (line.split()[0] for line in packed if line.endswith(f" {reference}"))
    return next(found, None)
