"""The command `select`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

if TYPE_CHECKING:
    from segwright.report.results import SelectionReport


def select(
    context: typer.Context,
    dataset: options.Dataset,
    config: options.Configurations = None,
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="0,2", help="Default: folds that all models have.")
    ] = None,
    plans: Annotated[str | None, typer.Option("--plans", metavar="NAME", help="Only models of these plans.")] = None,
    names: Annotated[
        list[str] | None, typer.Option("--names", metavar="A,B", help="Only models trained with these --name.")
    ] = None,
    no_ensembles: Annotated[
        bool, typer.Option("--no-ensembles", help="Compare single models only, no ensembles.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Default: model in the dataset's results.")
    ] = None,
    network: options.TrustedNetwork = None,
    trust_code: options.TrustCode = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the model or ensemble with the highest Dice on held-out cases, and write it as one model folder."""
    from segwright import api

    numbers = options.fold_numbers(folds)
    report = api.select(
        dataset,
        workspace=options.workspace_of(context),
        configurations=options.split_list(config) or None,
        folds=None if numbers == "all" else numbers,
        plans=plans,
        names=options.split_list(names) or None,
        ensembles=not no_ensembles,
        output=output,
        device=device,
        workers=workers,
        wait=not no_wait,
        environment=options.environment(),
        trust_code=options.code_trust(trust_code, network),
    )
    if as_json:
        print_json(report.to_json())
    else:
        print_selection(report)


def print_selection(report: SelectionReport) -> None:
    """Print the compared candidates, the gain of post-processing, and the command to predict."""
    from segwright.evaluation.postprocessing import CLEAR_GAIN
    from segwright.evaluation.statistics import few_cases_note

    found, processing = report.comparison, report.postprocessing
    rows = [
        [
            f"{candidate.name}{' *' if candidate.name == found.winner else ''}",
            number(candidate.dice),
            _format_interval(candidate.interval),
        ]
        for candidate in found.candidates
    ]
    if found.margin is not None:
        folds = f"fold{'s' if len(found.folds) > 1 else ''} {', '.join(map(str, found.folds))}"
        print_table(f"{found.cases} held-out cases of {folds}", ["model", "mean Dice", "95 % interval"], rows)
        print_line(f"* is better by {found.margin:.4f} ({_format_interval(found.margin_interval)})")
    if note := few_cases_note(found.cases):
        print_line(f"{note}; train the other folds too, so that every case is held out once")
    kept = ", ".join(item.name for item in processing.decisions if item.accepted)
    if kept:
        change = f"{number(processing.dice_before)} -> {number(processing.dice_after)}"
        print_line(f"post-processing keeps the largest component of {kept}: mean Dice {change}")
    elif unclear := [item for item in processing.decisions if item.is_unclear]:
        gain = max(item.after - item.before for item in unclear)
        print_line(
            f"no post-processing: keeping the largest component gains {gain:.4f} at most, on {processing.cases} case"
            f"{'s' * (processing.cases != 1)}; it is chosen from {CLEAR_GAIN.gain:g} on {CLEAR_GAIN.cases} cases on"
        )
    else:
        print_line("no post-processing: keeping the largest component helps nowhere")
    for line in _describe_reliability(report):
        print_line(line)
    if report.shortcoming:
        print_line(report.shortcoming)
        return
    print_line(f"predict with: segwright predict --model {report.model} -i IMAGES -o OUT")


def _describe_reliability(report: SelectionReport) -> Iterator[str]:
    """Yield sentences about the model's expected Dice and calibration."""
    estimator = report.dice_estimator
    if estimator is not None:
        line = (
            f"expected Dice, estimated from predictions: {estimator.cases} held-out case{'s' * (estimator.cases != 1)}"
        )
        if not estimator.is_reported:
            line += ", too few to report it; predict warns of likely failures"
        elif estimator.error is not None:
            line += f", mean absolute error {estimator.error:.2g}"
        if estimator.auroc is not None:
            line += f", AUROC {estimator.auroc:.2f} for the worst fifth (Dice up to {estimator.tau:.2f})"
        yield line
    found = report.calibration
    if found is not None and found.helps:
        yield (
            f"temperature {found.temperature:.2f}: calibration error {found.ece_before:.4f} -> {found.ece_after:.4f} "
            "(predict --calibrated)"
        )
    elif found is not None:
        yield f"no temperature: no temperature lowers the calibration error of {found.ece_before:.4f}"


def _format_interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
