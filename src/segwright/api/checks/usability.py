"""Judge by Dice and training length whether a model is usable at all."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import SegwrightError
from segwright.core.files.json_documents import read_checked_json

MIN_DICE: Final = 0.01
"""Mean held-out Dice below which a model has learned nothing useful."""
MIN_STEPS: Final = 10
"""Fewest training steps from random weights to count as trained, whatever Dice is reached by chance."""
RECOMMENDED_STEPS: Final = 1000
"""Shortest training to recommend: four epochs of nnU-Net, after which the easy tasks of the benchmarks are usable."""


def find_shortcoming(folds: Sequence[Path], dice: float) -> str:
    """Explain why a model is not usable and how long to train it; empty if it is usable.

    Args:
        folds: its finished fold folders.
        dice: mean Dice of its held-out cases; ignored if NaN (no case contains a class).
    """
    records = [record for fold in folds if (record := _record(fold))]
    steps = min((int(record["step"]) for record in records), default=RECOMMENDED_STEPS)
    is_short = steps < MIN_STEPS and not any(record["config"].get("pretrained") for record in records)
    if not (is_short or dice < MIN_DICE):
        return ""
    reasons = [f"mean Dice {dice:.4f}"] * (dice < MIN_DICE)
    reasons += [f"{steps} training step{'s' * (steps != 1)}"] * (is_short or steps < RECOMMENDED_STEPS)
    return f"this model is not usable ({', '.join(reasons)}); {_advice(records, steps)}"


def _advice(records: Sequence[dict[str, Any]], steps: int) -> str:
    """Return what to do about a model that is not usable."""
    if steps >= RECOMMENDED_STEPS:
        return "check the labels with 'segwright check' and the images in the report before training longer"
    seconds = max(float(record["elapsed_s"]) / max(int(record["step"]), 1) for record in records)
    minutes = ceil(RECOMMENDED_STEPS * seconds / 60)
    budget = f"{minutes}m" if minutes < 120 else f"{ceil(minutes / 60)}h"
    return (
        f"delete its folds and train longer, at least {RECOMMENDED_STEPS} steps: about --budget {budget} on this "
        "machine"
    )


def _record(fold: Path) -> dict[str, Any] | None:
    """Return the training record in a fold's checkpoint; None for nnU-Net's or damaged ones."""
    try:
        document = read_checked_json(fold / "checkpoint_final.json")
    except SegwrightError:
        return None
    known = isinstance(document, dict) and isinstance(document.get("config"), dict)
    counted = known and all(isinstance(document.get(key), int | float) for key in ("step", "elapsed_s"))
    return document if counted else None
