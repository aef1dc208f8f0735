"""The command `move-plans`."""

from __future__ import annotations

from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line


def move_plans(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Dataset with plans, trained model, or plans file."),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Dataset to which the plans are copied.")],
    plans: options.Plans = "nnUNetPlans",
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Name of the new plans.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing plans.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Copy plans to another dataset, to pre-train or fine-tune with the same network and spacing."""
    from segwright import api

    workspace = options.workspace_of(context)
    moved = api.move_plans(
        source,
        target,
        workspace=workspace,
        plans=plans,
        name=name,
        force=force,
        environment=options.environment(),
    )
    file = workspace.plans_file(moved.dataset_name, moved.plans_name)
    if as_json:
        print_json({"plans": str(file), "dataset": moved.dataset_name, "name": moved.plans_name})
    else:
        print_line(f"written to {file}")
