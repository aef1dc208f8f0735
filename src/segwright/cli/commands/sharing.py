"""Commands that pack models to share them, list the installed ones and show their cards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import print_json, print_line, print_table


def pack(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Selected model, model folder, installed model, or a dataset's name or id."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NAME.zip", help="New file.")],
    license_name: Annotated[
        str, typer.Option("--license", metavar="L", help="License of the weights, e.g. CC-BY-4.0 (SPDX).")
    ],
    license_url: Annotated[
        str, typer.Option("--license-url", metavar="URL", help="Text of a license LicenseRef-NAME.")
    ] = "",
    intended_use: Annotated[
        str, typer.Option("--intended-use", metavar="TEXT", help="What the model is for, and what not.")
    ] = "unknown",
    training_data: Annotated[
        str, typer.Option("--training-data", metavar="TEXT", help="Where the training cases are from.")
    ] = "unknown",
    as_json: options.AsJson = False,
) -> None:
    """Pack a model with a model card into a zip file that 'segwright install' takes."""
    from segwright import api
    from segwright.core.files.hashing import file_hash
    from segwright.deploy.model_card import CARD_MD

    card = api.pack(
        model,
        output,
        license=license_name,
        license_url=license_url,
        intended_use=intended_use,
        training_data=training_data,
        workspace=options.workspace_of(context),
    )
    digest = file_hash(output)
    if as_json:
        print_json({"file": output, "sha256": digest, "card": card.to_json()})
        return
    print_line(f"written to {output}, with {CARD_MD}")
    print_line(f"install it with: segwright install {output.name} --sha256 {digest}")


def models(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List the installed models."""
    from segwright import api

    installed = api.installed_models(workspace=options.workspace_of(context))
    if as_json:
        print_json({"models": [asdict(model) for model in installed]})
        return
    if not installed:
        print_line("no model is installed; segwright install FILE|URL installs one")
        return
    print_table(
        "Installed models",
        ["name", "kind", "license of the weights", "source"],
        [[each.name, each.kind, each.license, each.source] for each in installed],
    )


def info(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder or zip file, installed model, or a dataset.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Print the card of a model: license, intended use, data, accuracy, hashes."""
    from segwright import api
    from segwright.deploy.model_card import describe

    card = api.model_info(model, workspace=options.workspace_of(context))
    if as_json:
        print_json(card.to_json())
        return
    for line in describe(card):
        print_line(line)
