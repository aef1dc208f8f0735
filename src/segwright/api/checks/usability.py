"""Whether a model can be used at all, told by its Dice and by how long its folds were trained."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import SegwrightError
from segwright.core.files.atomic_io import read_checked_json

LOWEST_DICE: Final = 0.01
"""Mean Dice of held-out cases below which nothing of use was learned."""
FEWEST_STEPS: Final = 10
"""A network that began with random weights has learned nothing in fewer, whatever Dice it reaches by chance."""
ENOUGH_STEPS: Final = 1000
"""Four epochs of nnU-Net: the shortest training to be advised. The easy tasks of the benchmarks are usable after it."""


def shortcoming(folds: Sequence[Path], dice: float) -> str:
    """Return why a model is not usable and how long to train it, empty if it is.

    Args:
        folds: its fold folders, trained to their end.
        dice: mean of its held-out cases; NaN, where no class is in any, says nothing.
    """
    records = [record for fold in folds if (record := _record(fold))]
    steps = min((int(record["step"]) for record in records), default=ENOUGH_STEPS)
    is_short = steps < FEWEST_STEPS and not any(record["config"].get("pretrained") for record in records)
    if not (is_short or dice < LOWEST_DICE):
        return ""
    found = [f"mean Dice {dice:.4f}"] * (dice < LOWEST_DICE)
    found += [f"{steps} training step{'s' * (steps != 1)}"] * (is_short or steps < ENOUGH_STEPS)
    return f"this model is not usable ({', '.join(found)}); {_advice(records, steps)}"


def _advice(records: Sequence[dict[str, Any]], steps: int) -> str:
    """Return what to do about it."""
    if steps >= ENOUGH_STEPS:
        return "look at the labels with 'segwright check' and at the pictures of the report before training longer"
    seconds = max(float(record["elapsed_s"]) / max(int(record["step"]), 1) for record in records)
    minutes = ceil(ENOUGH_STEPS * seconds / 60)
    budget = f"{minutes}m" if minutes < 120 else f"{ceil(minutes / 60)}h"
    return f"remove its folds and train longer, at least {ENOUGH_STEPS} steps: about --budget {budget} on this machine"


def _record(fold: Path) -> dict[str, Any] | None:
    """Return what a fold's checkpoint says of its training; None for one of nnU-Net, or a damaged one."""
    try:
        document = read_checked_json(fold / "checkpoint_final.json")
    except SegwrightError:
        return None
    known = isinstance(document, dict) and isinstance(document.get("config"), dict)
    counted = known and all(isinstance(document.get(key), int | float) for key in ("step", "elapsed_s"))
    return document if counted else None
