"""The commands `report` (HTML page) and `show` (plan, fingerprint or scores in the terminal)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

if TYPE_CHECKING:
    from segwright.data.fingerprint import Fingerprint
    from segwright.data.plan import Plan
    from segwright.report.tables import ScoreTable

KINDS = ("plan", "fingerprint", "scores")

_WORST_SHOWN = 10


def report(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Model folder, fold, work folder; or a dataset's name or id.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: report.html in the folder given.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", metavar="DIR", help="Raw dataset whose images to show (default: the workspace's)."),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", metavar="FILE", help="summary.json of other predictions; repeatable."),
    ] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Leave out images of patients.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write one self-contained HTML page: scores, worst cases in a slice viewer, curves, data, plan, environment."""
    from segwright import api

    file = api.write_report(
        target,
        output,
        workspace=options.workspace_of(context),
        dataset=dataset,
        scores=scores or (),
        pictures=not no_pictures,
        environment=options.environment(),
    )
    size = file.stat().st_size
    if as_json:
        print_json({"report": str(file), "bytes": size})
    else:
        print_line(f"report: {file} ({size / 1e6:.1f} MB)")


def show(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="plan, fingerprint or scores.")],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The file, or a folder that contains it; or a dataset's name or id.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Show a plan, a fingerprint or scores as tables."""
    from segwright import api

    if kind not in KINDS:
        raise typer.BadParameter(f"'{kind}' is not one of {', '.join(KINDS)}", param_hint="KIND")
    workspace = options.workspace_of(context)
    if kind == "plan":
        plan = api.find_plan(path, workspace=workspace)
        print_json(plan.to_json()) if as_json else _show_plan(plan)
    elif kind == "fingerprint":
        found = api.find_fingerprint(path, workspace=workspace)
        print_json(found.model_dump(mode="json")) if as_json else _show_fingerprint(found)
    else:
        tables = api.find_scores(path, workspace=workspace)
        if as_json:
            print_json([table.to_json() for table in tables])
        else:
            for table in tables:
                _show_scores(table)


def _show_plan(plan: Plan) -> None:
    from segwright.planning.rationale import decisions, format_sizes, format_value

    rows = [
        [
            name,
            format_sizes(item.spacing),
            format_sizes(item.median_image_size_in_voxels),
            format_sizes(item.patch_size),
            str(item.batch_size),
            item.architecture.network_class_name.rpartition(".")[2],
        ]
        for name, item in ((name, plan.configuration(name)) for name in plan.configuration_names)
    ]
    title = f"{plan.plans_name} for {plan.dataset_name}"
    print_table(title, ["configuration", "spacing", "median size", "patch", "batch", "network"], rows)
    for entry in decisions(plan):
        print_line(f"{entry.configuration}, {entry.decision}: {format_value(entry.value)}")
        print_line(f"    {entry.reason}")


def _show_fingerprint(found: Fingerprint) -> None:
    import numpy as np

    rows = []
    for title, values in (("spacing", found.spacings), ("size", found.shapes_after_crop)):
        for axis, column in enumerate(np.array(values, dtype=float).T):
            parts = (column.min(), float(np.median(column)), column.max())
            rows.append([f"{title}, axis {axis}", *(f"{part:.5g}" for part in parts)])
    print_table(f"{len(found.spacings)} cases", ["", "lowest", "median", "highest"], rows)
    names = ("mean", "std", "min", "percentile_00_5", "median", "percentile_99_5", "max")
    rows = [
        [channel, *(f"{getattr(item, name):.5g}" for name in names)]
        for channel, item in found.foreground_intensity_properties_per_channel.items()
    ]
    print_table("Intensities inside the labels", ["channel", *names], rows)
    print_line(f"cropping keeps {found.median_relative_size_after_cropping:.1%} of the median image")


def _show_scores(table: ScoreTable) -> None:
    from segwright.evaluation.statistics import few_cases_note

    names = list(table.rows[0].values)
    rows = [
        [
            row.name,
            *(number(row.values[name]) for name in names),
            "-" if row.interval is None else f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
            str(row.num_cases),
        ]
        for row in table.rows
    ]
    print_table(f"{table.title}, {len(table.cases)} cases", ["class", *names, "Dice 95 %", "cases"], rows)
    if note := few_cases_note(len(table.cases)):
        print_line(note)
    if table.surfaces:
        measured = list(table.surfaces[0].values)
        values = [[number(row.values[name]) for name in measured] for row in table.surfaces]
        named = [[row.name, *found] for row, found in zip(table.surfaces, values, strict=True)]
        print_table("Surfaces: distances in mm, NSD as a share", ["class", *measured], named)
    worst = table.cases[:_WORST_SHOWN]
    classes = list(worst[0].dice)
    print_table(
        f"The {len(worst)} cases with the lowest Dice",
        ["case", "mean", *classes],
        [[case.name, number(case.mean), *(number(case.dice[name]) for name in classes)] for case in worst],
    )
