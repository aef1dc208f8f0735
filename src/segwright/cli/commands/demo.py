"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

DEMO_WORK = Path("segwright-demo")


def demo(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder (default: --work or ./segwright-demo).")
    ] = None,
    budget: options.Budget = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo and start again.")] = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train on a phantom dataset, predict and score unseen cases, draw figures; takes four minutes."""
    from segwright import api

    folder = output or context.obj or DEMO_WORK
    result = api.demo(folder, budget=budget, fresh=fresh, device=device)
    if as_json:
        print_json(result.to_json())
        return
    rows = [[name, number(dice)] for name, dice in [*result.per_label.items(), ("mean", result.mean_dice)]]
    print_table("Dice on unseen cases", ["structure", "Dice"], rows)
    print_line(f"figures (reference above, prediction below): {result.pictures[0].parent}")
    for picture in result.pictures:
        print_line(f"  {picture}")
    print_line(f"model: {result.model}")
    if result.report_html is not None:
        print_line(f"report: {result.report_html}")
    if result.shortcoming:
        print_line(result.shortcoming)
    print_line(f"{result.seconds:.0f} s in all")
