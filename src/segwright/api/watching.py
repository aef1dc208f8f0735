"""Read the progress of trainings from their folders, while they run in other processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segwright.api.checks.staleness import changes_since_training, outdated_results
from segwright.core.errors import ModelError
from segwright.core.files.json_documents import parse_document
from segwright.core.files.locks import holder
from segwright.evaluation.crossval import VALIDATION
from segwright.evaluation.scores import Scores
from segwright.training.monitoring.status import STATUS_JSON, STOP_FILE, Status
from segwright.workspace import LOCK, SUMMARY_JSON, Workspace

SILENT_S = 60.0
"""A training that has written nothing for this time and for ten steps is reported as silent."""

SILENT_STEPS = 10

_LOCK_DEPTH = 6
"""Levels down to a lock: work/results/dataset/model/predicted_next_stage/configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldStatus:
    """Progress of one fold.

    Attributes:
        folder: Folder of the fold.
        state: training, stopping, interrupted, silent (it may be dead), validating, or finished.
        status: Its last status record.
        age_s: Seconds since that record.
        dice: Mean Dice of the final validation; None before it.
        changes: Changes of its data since it was trained, one sentence each.
        held_by: Which process works on it now, as a sentence; empty if none does.
    """

    folder: Path
    state: str
    status: Status
    age_s: float
    dice: float | None
    changes: tuple[str, ...] = ()
    held_by: str = ""


def status(folder: Path | str) -> list[FoldStatus]:
    """Return the progress of every training at or below a folder (fold, model, results or work folder).

    Raises:
        ModelError: there are none, and no process works in the folder.
    """
    place = Path(folder)
    folds = [_read(path) for path in sorted(_files(place))]
    if not folds and not under_way(place):
        raise ModelError(f"{place}: no training found; give a fold, model, results or work folder")
    return folds


def under_way(folder: Path | str) -> list[str]:
    """Return a sentence for each process that holds a lock of a folder or below it: what it does, host and process id.

    Nothing is written: for processes of other machines this machine's clock decides whether they are alive.
    """
    place = Path(folder).absolute()
    below = [path for depth in range(_LOCK_DEPTH) for path in place.glob("*/" * depth + f".*{LOCK.removeprefix('.')}")]
    beside = [Workspace.lock_beside(place)] if place.name else []
    holders = [holder(path, now=time.time()) for path in (*beside, *sorted(below))]
    return [str(each) for each in dict.fromkeys(holders) if each is not None]


def outdated(folder: Path | str) -> list[str]:
    """Return a sentence for each selected model and report below a folder that is older than a fold."""
    place = Path(folder)
    results = sorted({path.parent.parent.parent for path in _files(place)})
    return [line for each in results for line in outdated_results(each)]


def _files(place: Path) -> Iterator[Path]:
    """Yield status files up to five levels down (work/results/dataset/model/fold), skipping data folders."""
    for depth in range(5):
        yield from place.glob("*/" * depth + STATUS_JSON)


def _read(path: Path) -> FoldStatus:
    status = parse_document(Status, path)
    age_s = max(time.time() - status.updated, 0.0)
    summary = path.parent / VALIDATION / SUMMARY_JSON
    state: str = status.state
    if state == "training":
        step_s = status.elapsed_s / max(status.step, 1)
        if age_s > max(SILENT_S, SILENT_STEPS * step_s):
            state = "silent"
        elif (path.parent / STOP_FILE).exists():
            state = "stopping"
    return FoldStatus(
        folder=path.parent,
        state=state,
        status=status,
        age_s=age_s,
        dice=Scores.load(summary).mean_dice if summary.is_file() else None,
        changes=tuple(changes_since_training(path.parent)),
        held_by=str(holder(Workspace.lock_beside(path.parent.absolute()), now=time.time()) or ""),
    )
