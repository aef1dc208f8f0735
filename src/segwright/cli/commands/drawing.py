"""Commands that draw pictures of datasets, predictions and augmented samples."""

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


def overlay(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="DATASET|PREDICTIONS",
            help="Raw dataset (folder, name or id), one of its folders (imagesTs), or folder of predictions.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the PNG sheets.")],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="DIR", help="Other label maps of the same names, or raw dataset."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Images of predictions, or their raw dataset (default: found)."),
    ] = None,
    dataset_json: Annotated[
        Path | None,
        typer.Option("--dataset-json", metavar="F", help="dataset.json of predictions (default: near either folder)."),
    ] = None,
    cases: Annotated[list[str] | None, typer.Option("--cases", metavar="A,B", help="Draw these cases only.")] = None,
    contours: Annotated[
        bool, typer.Option("--contours", help="Contours only; those of references dashed in the same pictures.")
    ] = False,
    zoom: Annotated[bool, typer.Option("--zoom", help="Draw the surroundings of the labels only.")] = False,
    plane: Annotated[
        str, typer.Option("--plane", metavar="P", help="axial, coronal, sagittal, or auto: across thick slices.")
    ] = "auto",
    slices: Annotated[int, typer.Option("--slices", metavar="N", help="Largest number of slices of a case.")] = 4,
    size: Annotated[int, typer.Option("--size", metavar="PX", help="Pixels of a picture's longer side.")] = 256,
    channel: Annotated[
        str | None,
        typer.Option("--channel", metavar="NAME|N", help="Channel to show (default: colours of RGB, else the first)."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw labels or predictions over their images, many cases on a PNG sheet."""
    from segwright import api

    sheets = api.overlay(
        target,
        output,
        reference=reference,
        images=images,
        dataset_json=dataset_json,
        cases=options.split_list(cases) or None,
        contours=contours,
        zoom=zoom,
        plane=plane,
        slices=slices,
        size=size,
        channel=channel,
        workspace=options.workspace_of(context),
        environment=options.environment(),
    )
    if as_json:
        print_json({"sheets": [str(sheet) for sheet in sheets]})
        return
    for sheet in sheets:
        print_line(f"sheet: {sheet}")
