"""Commands that share, install, show, import and export models."""

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


def install(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|URL|hf:ORG/NAME", help="Zip file of a model (also nnU-Net's), or checkpoint of nnssl."
        ),
    ],
    sha256: Annotated[str | None, typer.Option("--sha256", metavar="H", help="Expected SHA-256 of the file.")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Name (default: the file's).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the installed model of that name.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Install models from a file or web address, to be used by name; a download continues where it stopped."""
    from segwright import api

    installed = api.install(
        source,
        sha256=sha256,
        name=name,
        overwrite=overwrite,
        workspace=options.workspace_of(context),
        environment=options.environment(),
    )
    if as_json:
        print_json({"models": [asdict(model) for model in installed]})
        return
    for model in installed:
        print_line(f"model: {model.folder}" + ("" if model.is_new else " (already installed)"))
        if model.license:
            print_line(f"license of the weights: {model.license}; intended use: {model.intended_use}")
        use = "train DATASET ... --pretrained" if model.kind == "nnssl" else "predict -i IMAGES -o OUT --model"
        print_line(f"use it with: segwright {use} {model.name}")


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
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Segwright model folder.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="New folder, or NAME.zip.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DEST", help="The same, as an option.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--format", metavar="F", help="nnunet, or onnx: a bundle that predicts without torch.")
    ] = "nnunet",
    folds: Annotated[list[str] | None, typer.Option("--folds", metavar="0,1|all", help="Folds (default: all).")] = None,
    with_validation: Annotated[
        bool, typer.Option("--with-validation", help="nnunet: also the predictions and scores of held-out cases.")
    ] = False,
    no_mirroring: Annotated[
        bool, typer.Option("--no-mirroring", help="onnx: faster prediction, a little less accurate.")
    ] = False,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="L", help="onnx: license of the weights, such as CC-BY-4.0.")
    ] = None,
    network: options.TrustedNetwork = None,
    trust_code: options.TrustCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Export a trained model for nnU-Net v2, or as an ONNX bundle."""
    from segwright import api

    destination = target or output
    if destination is None or (target and output):
        raise typer.BadParameter("give the new folder or file once: DEST, or -o DEST", param_hint="DEST")
    written = api.export_model(
        model,
        destination,
        kind=kind,
        folds=options.split_list(folds) or None,
        with_validation=with_validation,
        mirroring=not no_mirroring,
        license=license_name,
        trust_code=options.code_trust(trust_code, network) if trust_code or network else False,
        workspace=options.workspace_of(context),
    )
    if as_json:
        print_json({"model": written})
    else:
        print_line(f"written to {written}")


def segments(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder or name of an installed model.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: segments.json of the model.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Guess again, and replace the file.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the codes of a model's classes for DICOM objects, guessed from their names, or show those that it has."""
    from segwright import api

    found = api.segments(model, output, overwrite=overwrite, workspace=options.workspace_of(context))
    if as_json:
        print_json({"segments": [segment.to_json() for segment in found]})
        return
    rows = [
        [
            segment.name,
            " ".join(term.meaning for term in (segment.modifier, segment.kind) if term is not None),
            "-" if segment.region is None else segment.region.meaning,
            segment.category.meaning + (" (not found in the dictionaries)" if segment.is_unknown else ""),
        ]
        for segment in found
    ]
    print_table("codes of the classes", ["class", "type", "place", "category"], rows)
