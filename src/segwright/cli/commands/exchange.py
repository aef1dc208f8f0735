"""Commands that import and export nnU-Net models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line


def import_model(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Model folder of nnU-Net v2, or its zip file.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="New model folder.")],
    as_json: options.AsJson = False,
) -> None:
    """Convert an nnU-Net v2 model into a safe Segwright folder without pickle."""
    from segwright import api

    models = api.import_model(source, target)
    if as_json:
        print_json({"models": models})
        return
    for model in models:
        print_line(f"model: {model}")


def export_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Segwright model folder.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="New folder, or NAME.zip.")],
    kind: Annotated[str, typer.Option("--format", metavar="F", help="nnunet.")] = "nnunet",
    folds: Annotated[list[str] | None, typer.Option("--folds", metavar="0,1|all", help="Folds (default: all).")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Export a trained model for nnU-Net v2."""
    from segwright import api

    written = api.export_model(model, target, kind=kind, folds=options.split_list(folds) or None)
    if as_json:
        print_json({"model": written})
    else:
        print_line(f"written to {written}")
