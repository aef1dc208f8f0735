"""`train.json`: what was run, with which settings, on what, by which versions."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segwright
from segwright.core.device import compute_dtype
from segwright.training.config import TrainConfig

TRAIN_JSON = "train.json"
SCHEMA_VERSION = 1

_COMMIT = re.compile(r"[0-9a-f]{40}")


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
