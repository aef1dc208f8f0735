"""Files that describe a run: `train.json` (settings, data, device, versions), `debug.json` (attributes as text)."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segwright
from segwright.core.device import compute_dtype
from segwright.core.files.json_documents import write_checked_json, write_json
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan
from segwright.training.config import TrainConfig
from segwright.workspace import DATASET_JSON, PLANS_JSON, TRAIN_JSON

logger = getLogger(__name__)

DEBUG_JSON = "debug.json"
SCHEMA_VERSION = 1

_COMMIT = re.compile(r"[0-9a-f]{40}")


def write_documents(
    folder: Path,
    plan: Plan,
    description: DatasetDescription,
    *,
    record: Mapping[str, Any],
    debug: Mapping[str, str],
) -> None:
    """Write plan and dataset description into the model folder, and the record of this run into the fold's folder.

    Args:
        folder: of the fold; its parent is the model folder.
        plan: in force.
        description: of the dataset.
        record: `train_record`.
        debug: `debug_document`.
    """
    plan.save(folder.parent / PLANS_JSON)
    write_json(folder.parent / DATASET_JSON, description.raw(), indent=4)
    write_checked_json(folder / TRAIN_JSON, record)
    write_json(folder / DEBUG_JSON, debug, sort_keys=True)


def debug_document(attributes: Mapping[str, object], device: torch.device) -> dict[str, str]:
    """Return a trainer's attributes as text, its network layer by layer, and the machine (nnU-Net behaviour 8.2)."""
    values = {name: str(value) for name, value in attributes.items() if not name.startswith("_")}
    accelerator = device.type not in ("cpu", "mps")
    return {
        **values,
        "hostname": platform.node(),
        "gpu_name": torch.cuda.get_device_name(device) if accelerator else "None",
        "cudnn_version": str(torch.backends.cudnn.version()) if accelerator else "None",  # type: ignore[no-untyped-call]
        "torch_version": torch.__version__,
    }


def train_record(
    config: TrainConfig, device: torch.device, *, notes: Sequence[str], identity: dict[str, Any]
) -> dict[str, Any]:
    """Return the document for `train.json`.

    Args:
        config: the settings in force.
        device: where the network is trained.
        notes: reasons why settings differ from the defaults.
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


def warn_of_other_threads(folder: Path, record: Mapping[str, Any]) -> None:
    """Warn if a deterministic training goes on with another number of threads, which changes how sums are rounded.

    Args:
        folder: of the fold, with the `train.json` of the run before, if there was one.
        record: `train_record` of this run.
    """
    try:
        before = json.loads((folder / TRAIN_JSON).read_text(encoding="utf-8"))["threads"]
    except (OSError, ValueError, KeyError, TypeError):  # the first run, or a damaged record, which is replaced now
        return
    if record["config"]["deterministic"] and before != record["threads"]:
        logger.warning(
            "deterministic: this training ran with %s threads and goes on with %d, so its weights will not be those of "
            "an uninterrupted one to the last bit; set OMP_NUM_THREADS=%s for that",
            before,
            record["threads"],
            before,
        )


def git_commit(folder: Path) -> str | None:
    """Return the commit of a source checkout, read from its files; None outside a checkout."""
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
