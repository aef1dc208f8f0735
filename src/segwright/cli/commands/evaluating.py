"""Commands that score predictions and compare models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

if TYPE_CHECKING:
    from segwright.report.results import Evaluation

HIDDEN: Final = ("Volume_pred_mm3", "Volume_ref_mm3", "Volume_error_mm3")
"""Measures of `summary.json` left out of the table, since their average means little."""


def evaluate(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE_DIR", help="Folder of reference label maps.")],
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION_DIR", help="Folder of predicted label maps.")],
    dataset_json: Annotated[
        Path | None,
        typer.Option(
            "--dataset-json", metavar="F", help="dataset.json with label names (default: near either folder)."
        ),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", metavar="1,2", help="Score these values; no dataset.json is needed.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write summary.json.")
    ] = None,
    surface: Annotated[bool, typer.Option("--surface", help="Also compute HD, HD95, ASSD (mm) and NSD.")] = False,
    lesions: Annotated[bool, typer.Option("--lesions", help="Also compute lesion-wise detection and PQ.")] = False,
    tolerance: Annotated[
        list[str] | None,
        typer.Option("--tolerance", metavar="1,2", help="Tolerances of the NSD in mm; sets --surface."),
    ] = None,
    ignore_label: Annotated[
        int | None, typer.Option("--ignore-label", metavar="N", help="Exclude voxels with this reference label.")
    ] = None,
    require_all: Annotated[bool, typer.Option("--require-all", help="Fail if a reference has no prediction.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write one row per case and class.")
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
        tolerances=_tolerances(tolerance),
        ignore_label=ignore_label,
        require_all=require_all,
        csv=csv,
        workers=workers,
        environment=options.environment(),
    )
    if as_json:
        print_json(result.to_json())
        return
    _print_means(result)
    print_line(f"written to {result.file}")


def compare(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL ...", help="summary.json files, their folders, model folders, or names."),
    ],
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="DATASET", help="Whose models are named; needed for names.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Test which of several models is better on common cases (Wilcoxon with Holm correction)."""
    from segwright import api

    found = api.compare(models, dataset=dataset, workspace=options.workspace_of(context))
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


def _tolerances(values: Sequence[str] | None) -> tuple[float, ...] | None:
    found = options.split_list(values)
    try:
        return tuple(map(float, found)) or None
    except ValueError as error:
        raise typer.BadParameter(f"{error}; give numbers in mm, such as 1,2", param_hint="--tolerance") from error


def _print_means(result: Evaluation) -> None:
    means = list(result.named_means())
    shown = [name for name in dict.fromkeys(key for _, item in means for key in item.extra) if name not in HIDDEN]
    rows = [
        [
            name,
            *(number(value) for value in (item.dice, item.iou, *(item.extra.get(key) for key in shown))),
            f"{item.n_pred:.0f}",
            f"{item.n_ref:.0f}",
        ]
        for name, item in means
    ]
    title = f"{len(result.scores.metric_per_case)} cases"
    print_table(title, ["class", "Dice", "IoU", *shown, "predicted voxels", "reference voxels"], rows)
    zero = ["Dice", "IoU", *(name for name in shown if name.startswith(("NSD", "Lesion", "PQ")))]
    infinite = "; distances left out" if "HD" in shown else ""
    print_line(f"absent in reference and prediction: left out; in one of them: {', '.join(zero)} 0{infinite}")
