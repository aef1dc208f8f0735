"""Commands on folders of predictions: post-processing, ensembles and cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

DatasetJson = Annotated[
    Path | None,
    typer.Option("--dataset-json", metavar="F", help="dataset.json with the labels (default: in or above a folder)."),
]


def determine_postprocessing(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE_DIR", help="Folder of reference label maps.")],
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION_DIR", help="Predictions of unseen cases.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: PREDICTION_DIR/postprocessing.json.")
    ] = None,
    dataset_json: DatasetJson = None,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Determine by nnU-Net's rule for which labels keeping only the largest component helps."""
    from segwright import api

    found = api.determine_postprocessing(
        reference,
        prediction,
        dataset_json=dataset_json,
        output=output,
        workers=workers,
        environment=options.environment(),
    ).processing
    if as_json:
        print_json(found.model_dump())
        return
    rows = [
        [item.name, number(item.before), number(item.after), "yes" if item.accepted else "no"]
        for item in found.decisions
    ]
    columns = ["largest component of", "Dice without", "Dice with", "accepted"]
    print_table(f"{found.cases} cases", columns, rows)
    print_line(f"mean Dice {number(found.dice_before)} -> {number(found.dice_after)}")


def apply_postprocessing(
    images: Annotated[Path, typer.Option("-i", "--input", metavar="IN", help="Folder of predicted label maps.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Output folder.")],
    postprocessing: Annotated[
        Path | None,
        typer.Option("--postprocessing", metavar="FILE", help="Default: postprocessing.json in IN; nnU-Net's too."),
    ] = None,
    dataset_json: DatasetJson = None,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Apply the steps of a postprocessing.json to a folder of label maps."""
    from segwright import api

    files = api.apply_postprocessing(
        images, output, postprocessing=postprocessing, dataset_json=dataset_json, workers=workers
    )
    if as_json:
        print_json(files)
    else:
        print_line(f"{len(files)} cases in {output}")


def ensemble(
    predictions: Annotated[
        list[Path], typer.Argument(metavar="PREDICTION_DIR ...", help="Written with --probabilities b2nd or npz.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder for the label maps.")],
    dataset_json: DatasetJson = None,
    probabilities: Annotated[
        str | None, typer.Option("--probabilities", metavar="FORM", help="Also write the mean: npz, b2nd or nifti.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing label maps.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Average the saved probabilities of several prediction folders (also nnU-Net's)."""
    from segwright import api

    files = api.ensemble(
        predictions, output, dataset_json=dataset_json, probabilities=probabilities or False, overwrite=overwrite
    )
    if as_json:
        print_json(files)
    else:
        print_line(f"{len(files)} cases in {output}")


def accumulate_crossval(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, with fold_0 and so on.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Default: crossval_results_folds_... in it.")
    ] = None,
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="0,2", help="Default: all validated folds.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Collect the held-out predictions of all folds in one folder and score them together."""
    from segwright import api

    numbers = options.fold_numbers(folds)
    result = api.accumulate_crossval(model, output, folds=None if numbers == "all" else numbers)
    if as_json:
        print_json(result.to_json())
        return
    rows = [[name, number(item.dice)] for name, item in result.named_means()]
    print_table(f"{len(result.scores.metric_per_case)} cases", ["class", "Dice"], rows)
    print_line(f"written to {result.file.parent}")
