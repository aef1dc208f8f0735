"""The command `preview-augmentation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line


def preview_augmentation(
    context: typer.Context,
    dataset: options.Dataset,
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="C", help="Configuration (default 3d_fullres).")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Number of samples.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default: augmentation.html in the preprocessed folder."),
    ] = None,
    plans: options.Plans = "nnUNetPlans",
    seed: options.Seed = None,
    set_values: options.SetValues = None,
    trust_code: options.TrustCode = False,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Write an HTML page of training samples before and after augmentation, with the drawn parameters."""
    from segwright import api

    file = api.preview_augmentation(
        dataset,
        configuration=config,
        samples=samples,
        output=output,
        workspace=options.workspace_of(context),
        plans=plans,
        settings=options.train_settings(set_values=set_values, epochs=None, seed=seed),
        workers=workers,
        environment=options.environment(),
        trust_code=options.code_trust(trust_code),
    )
    print_json({"page": str(file)}) if as_json else print_line(f"page: {file}")
