"""Read the progress of trainings from their folders, while they run in other processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segwright.api.checks.staleness import changes_since_training, outdated_results
from segwright.api.session import workspace_or_default
from segwright.core.errors import ModelError, SegwrightError
from segwright.core.files.json_documents import parse_document
from segwright.core.files.locks import holder
from segwright.data.plan import Plan
from segwright.evaluation.crossval import VALIDATION
from segwright.evaluation.scores import Scores
from segwright.training.monitoring.status import STATUS_JSON, STOP_FILE, Status
from segwright.workspace import LOCK, PLANS_JSON, SUMMARY_JSON, Workspace

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
        dataset: Name of the dataset, as the plan of the model gives it.
        state: training, stopping, interrupted, silent (it may be dead), validating, or finished.
        status: Its last status record.
        age_s: Seconds since that record.
        dice: Mean Dice of the final validation; None before it.
        changes: Changes of its data since it was trained, one sentence each.
        held_by: Which process works on it now, as a sentence; empty if none does.
    """

    folder: Path
    dataset: str
    state: str
    status: Status
    age_s: float
    dice: float | None
    changes: tuple[str, ...] = ()
    held_by: str = ""


def status(folder: Path | str | None = None, *, workspace: Workspace | None = None) -> list[FoldStatus]:
    """Return the progress of every training at or below a folder.

    Args:
        folder: Fold, model, results or work folder; or a dataset's name or id; by default all of the workspace.
        workspace: Where the results of a dataset are; `./segwright-work` by default.

    Raises:
        ModelError: there are none, and no process works in the folder.
    """
    places = watched_folders(folder, workspace)
    folds = [_read(path) for place in places for path in sorted(_files(place))]
    if not folds and not under_way(places):
        raise ModelError(f"{places[0]}: no training found; give a fold, model, results or work folder")
    return folds


def watched_folders(target: Path | str | None, workspace: Workspace | None) -> tuple[Path, ...]:
    """Return the folders that `status` looks into: the one given, those of a dataset, or all of the workspace.

    Raises:
        DatasetError: there is no such folder or dataset.
    """
    place = workspace_or_default(workspace)
    if target is None:
        return place.results, place.preprocessed
    if Path(target).exists():
        return (Path(target),)
    name = place.dataset_name(target)
    return place.results / name, place.preprocessed / name


def under_way(folders: Sequence[Path]) -> list[str]:
    """Return a sentence for each process that holds a lock of a folder or below it: what it does, host and process id.

    Nothing is written: for processes of other machines this machine's clock decides whether they are alive.
    """
    locks: list[Path] = []
    for place in map(Path.absolute, folders):
        depths = range(_LOCK_DEPTH)
        below = [path for depth in depths for path in place.glob("*/" * depth + f".*{LOCK.removeprefix('.')}")]
        locks += [*([Workspace.lock_beside(place)] if place.name else []), *sorted(below)]
    holders = [holder(path, now=time.time()) for path in locks]
    return [str(each) for each in dict.fromkeys(holders) if each is not None]


def outdated(folds: Sequence[FoldStatus]) -> list[str]:
    """Return a sentence for each selected model and report of these trainings that is older than a fold."""
    results = sorted({each.folder.absolute().parent.parent for each in folds})
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
        dataset=_dataset_name(path.parent.absolute().parent),
        state=state,
        status=status,
        age_s=age_s,
        dice=Scores.load(summary).mean_dice if summary.is_file() else None,
        changes=tuple(changes_since_training(path.parent)),
        held_by=str(holder(Workspace.lock_beside(path.parent.absolute()), now=time.time()) or ""),
    )


def _dataset_name(model: Path) -> str:
    """Return the name of the dataset of a model; empty if its plan cannot be read."""
    try:
        return Plan.load(model / PLANS_JSON).dataset_name
    except SegwrightError:
        return ""
