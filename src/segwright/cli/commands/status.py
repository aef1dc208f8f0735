"""The command `status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_table
from segwright.core.text import printable

if TYPE_CHECKING:
    from segwright.api.cluster.slurm import QueuedTask
    from segwright.workspace import Workspace


def status(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_DATASET",
            help="Fold, model, results or work folder; or a dataset's name or id (default: all of the work folder).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array only.")] = False,
) -> None:
    """Show the progress of trainings, which processes work in a folder, and submitted tasks in SLURM's queue.

    To end one early, create a file 'stop' in its fold folder: it ends after the current step, then is saved and
    validated.
    """
    from segwright import api
    from segwright.api.watching import outdated, under_way, watched_folders
    from segwright.core.errors import ModelError
    from segwright.training.monitoring.logbook import duration_text

    workspace = options.workspace_of(context)
    queued = _queued(target, workspace)
    try:
        found = api.status(target, workspace=workspace)
    except ModelError:
        if not queued or as_json:
            raise
        found = []
    if as_json:
        jobs = {task.log.parent: f"{task.job} {task.state}" for task in queued}
        documents = [
            {
                **item.status.model_dump(mode="json"),
                "state": item.state,
                "dataset": item.dataset,
                "folder": str(item.folder),
                "dice": item.dice,
                "changes": list(item.changes),
                "held_by": item.held_by,
                "queue": jobs.get(item.folder.absolute(), ""),
            }
            for item in found
        ]
        print(json.dumps(documents))
        return
    rows = []
    for item in found:
        now = item.status
        epochs = f" of {now.num_epochs}" if now.num_epochs else ""
        is_over = item.state in ("validating", "finished")
        left = duration_text(now.left_s) if now.left_s is not None and item.state in ("training", "stopping") else ""
        rows.append(
            [
                item.dataset,
                "/".join(item.folder.absolute().parts[-2:]),
                item.state,
                f"{now.epoch}{epochs}",
                f"all {now.step}" if is_over else f"{now.epoch_step} of {now.steps_per_epoch}",
                number(now.train_loss),
                number(now.ema_fg_dice),
                number(item.dice),
                left,
                f"{duration_text(item.age_s)} ago",
            ]
        )
    columns = ["dataset", "training", "state", "epoch", "step", "loss", "EMA pseudo Dice", "validation Dice"]
    columns += ["time left", "updated"]
    lines = [line for item in found for line in item.changes] + outdated(found)
    lines += under_way(watched_folders(target, workspace))
    if found:
        print_table(f"{len(found)} training{'s' if len(found) > 1 else ''}", columns, rows)
    if queued:
        cells = [[task.name, task.dataset, task.job, task.state, task.reason] for task in queued]
        columns = ["task", "dataset", "job", "state", "reason"]
        print_table(f"{len(queued)} task{'s' if len(queued) > 1 else ''} in the queue", columns, cells)
    for line in lines:
        print(printable(line))


def _queued(target: str | None, workspace: Workspace) -> list[QueuedTask]:
    """Return the submitted tasks in the queue; if it cannot be read, say so and return none."""
    from segwright import api
    from segwright.api.cluster.slurm import SlurmError
    from segwright.cli.launch import run_command

    try:
        return api.queued_tasks(target, workspace=workspace, run_command=run_command)
    except SlurmError as error:
        typer.echo(f"the queue is not shown: {error}", err=True)
        return []
