"""The command `status`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_table
from segwright.core.text import printable


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
    """Show the progress of trainings, and which processes work in a folder.

    To end one early, create a file 'stop' in its fold folder: it ends after the current step, then is saved and
    validated.
    """
    from segwright import api
    from segwright.api.watching import outdated, under_way, watched_folders
    from segwright.training.monitoring.logbook import duration_text

    workspace = options.workspace_of(context)
    found = api.status(target, workspace=workspace)
    if as_json:
        documents = [
            {
                **item.status.model_dump(mode="json"),
                "state": item.state,
                "dataset": item.dataset,
                "folder": str(item.folder),
                "dice": item.dice,
                "changes": list(item.changes),
                "held_by": item.held_by,
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
    for line in lines:
        print(printable(line))
