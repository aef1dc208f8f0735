"""The verbs that score predictions and compare models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_table

UNSHOWN: Final = ("Volume_pred_mm3", "Volume_ref_mm3", "Volume_error_mm3")
"""Measures that `summary.json` has and the table has not: they mean little on average."""


def evaluate(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE_DIR", help="Folder of true label maps.")],
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION_DIR", help="Folder of predicted label maps.")],
    dataset_json: Annotated[
        Path | None,
        typer.Option("--dataset-json", metavar="F", help="Names the labels (default: found beside either folder)."),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", metavar="1,2", help="Score these values; no dataset.json is needed.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write summary.json.")
    ] = None,
    surface: Annotated[bool, typer.Option("--surface", help="Also HD, HD95, ASSD and NSD, in mm.")] = False,
    lesions: Annotated[bool, typer.Option("--lesions", help="Also detection of single structures, and PQ.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write a line for each case and class.")
    ] = None,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Score predictions: Dice, IoU and counts per case and class, in nnU-Net's summary.json."""
    from segwright import api

    result = api.evaluate(
        reference,
        prediction,
        dataset_json=dataset_json,
        label_values=options.label_values(labels),
        output=output,
        surface=surface,
        lesions=lesions,
        csv=csv,
        workers=workers,
    )
    if as_json:
        print_json(result.to_json())
        return
    means = list(result.named_means())
    shown = [name for name in dict.fromkeys(key for _, item in means for key in item.further) if name not in UNSHOWN]
    rows = [
        [
            name,
            *(number(value) for value in (item.dice, item.iou, *(item.further.get(key) for key in shown))),
            f"{item.n_pred:.0f}",
            f"{item.n_ref:.0f}",
        ]
        for name, item in means
    ]
    title = f"{len(result.scores.metric_per_case)} cases"
    print_table(title, ["class", "Dice", "IoU", *shown, "voxels predicted", "voxels true"], rows)
    if surface or lesions:
        print("absent in truth and prediction: left out; in one of them: Dice, NSD, F1, PQ 0, distances left out")
    print(f"written to {result.file}")


def compare(
    summaries: Annotated[
        list[Path], typer.Argument(metavar="SUMMARY ...", help="summary.json files, or their folders.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Test which of several models is better on the cases they share (Wilcoxon, corrected after Holm)."""
    from segwright import api

    found = api.compare(summaries)
    if as_json:
        print_json([asdict(item) for item in found])
        return
    rows = [
        [
            f"{item.second} - {item.first}",
            str(item.cases),
            f"{item.difference:+.4f}",
            f"{item.p:.3g}",
            f"{item.p_holm:.3g}",
        ]
        for item in found
    ]
    print_table("Mean foreground Dice, paired by case", ["models", "cases", "difference", "p", "p (Holm)"], rows)
