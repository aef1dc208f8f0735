"""The commands `check`, `fingerprint`, `plan` and `preprocess`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

if TYPE_CHECKING:
    from segwright.api import ConfigurationCost


def check(
    context: typer.Context,
    dataset: options.Dataset,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Report every problem of a dataset in one pass; exit code 1 if there is one."""
    from segwright import api

    findings = api.check(
        dataset, workspace=options.workspace_of(context), workers=workers, environment=options.environment()
    )
    if as_json:
        print_json(asdict(findings))
        raise typer.Exit(1 if findings.errors else 0)
    for problem in findings.errors:
        print_line(f"error: {problem}")
    for problem in findings.warnings:
        print_line(f"warning: {problem}")
    if findings.mirror_pairs is not None:
        print_line(f"note: {findings.mirror_pairs.describe()}; {findings.mirror_pairs.advice()}")
    if findings.errors:
        print_line(f"{len(findings.errors)} error(s), {len(findings.warnings)} warning(s)")
        raise typer.Exit(1)
    print_line(
        f"ok: {dataset} is a usable dataset" + (f", {len(findings.warnings)} warning(s)" if findings.warnings else "")
    )


def fingerprint(
    context: typer.Context,
    dataset: options.Dataset,
    workers: options.Workers = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again even if nothing changed.")] = False,
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure shapes, spacings and intensities of all cases."""
    from segwright import api

    workspace = options.workspace_of(context)
    found = api.fingerprint(
        dataset,
        workspace=workspace,
        workers=workers,
        force=force,
        wait=not no_wait,
        environment=options.environment(),
    )
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        [
            channel,
            *(
                number(value)
                for value in (item.mean, item.std, item.percentile_00_5, item.median, item.percentile_99_5)
            ),
        ]
        for channel, item in found.foreground_intensity_properties_per_channel.items()
    ]
    print_table("Foreground intensities", ["channel", "mean", "std", "0.5 %", "median", "99.5 %"], rows)
    file = workspace.fingerprint_file(workspace.resolve_dataset(dataset).name)
    print_line(f"{len(found.spacings)} cases; written to {file}")


def plan(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="Folder of a raw dataset, name, or id.")
    ] = None,
    preset: options.Preset = "default",
    gpu_memory: options.GpuMemory = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="N", help="Name of the plans (default: preset's).")
    ] = None,
    spacing: options.Spacing = None,
    resampling: options.Resampling = "default",
    reorient: Annotated[
        bool,
        typer.Option("--reorient", help="Reorient every image to RAS+."),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="CHECKPOINT", help="Plan for the network of a checkpoint of nnssl (.pth)."),
    ] = None,
    budget: options.Budget = None,
    groups: options.Groups = None,
    stratify: options.Stratify = None,
    device: options.Device = "auto",
    explain: Annotated[bool, typer.Option("--explain", help="Print the reason of every decision.")] = False,
    force: Annotated[
        bool,
        typer.Option("--overwrite", "--force", help="Replace plans that are in use or were edited by hand."),
    ] = False,
    from_fingerprint: Annotated[
        Path | None, typer.Option("--from-fingerprint", metavar="FILE", help="Plan from a fingerprint, without images.")
    ] = None,
    dataset_json: Annotated[
        Path | None, typer.Option("--dataset-json", metavar="FILE", help="The dataset.json of --from-fingerprint.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="File for the plans.")] = None,
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Plan network, patch size, spacing and so on; write nnU-Net's plans.json with reasons."""
    from segwright import api
    from segwright.core.errors import ConfigError, SegwrightError

    settings = api.PlanOptions(
        preset=preset,
        gpu_memory_gb=gpu_memory,
        name=name,
        spacing=spacing,
        resampling=resampling,
        reorient=reorient,
        like=like,
    )
    if (from_fingerprint is None) != (dataset_json is None) or (from_fingerprint is None) == (dataset is None):
        raise ConfigError("plan: give either DATASET, or --from-fingerprint FILE together with --dataset-json FILE")
    if from_fingerprint is not None and dataset_json is not None:
        if groups is not None or stratify is not None:
            raise ConfigError("plan: folds need cases; give DATASET instead of --from-fingerprint")
        if budget is not None:
            raise ConfigError("plan: --budget times steps on the dataset; give DATASET instead of --from-fingerprint")
        made = api.plan_from_fingerprint(from_fingerprint, dataset_json, options=settings)
        file = output or Path(f"{made.plans_name}.json")
        made.save(file)
    else:
        workspace = options.workspace_of(context)
        made = api.plan(
            str(dataset),
            workspace=workspace,
            options=settings,
            budget=budget,
            device=device,
            force=force,
            groups=groups,
            stratify=stratify,
            wait=not no_wait,
            environment=options.environment(),
        )
        file = workspace.plans_file(workspace.resolve_dataset(str(dataset)).name, made.plans_name)
        if output is not None:
            made.save(output)
            file = output
    if as_json:
        print_json(made.to_json())
        return
    configurations = {each: made.configuration(each) for each in made.configuration_names}
    rows = [
        [
            each,
            _sizes(item.spacing),
            _sizes(item.median_image_size_in_voxels),
            _sizes(item.patch_size),
            str(item.batch_size),
        ]
        for each, item in configurations.items()
    ]
    print_table(made.plans_name, ["configuration", "spacing", "median size", "patch", "batch"], rows)
    if explain:
        print(api.explain(made))
        if dataset is not None:
            try:
                costs = api.training_costs(
                    dataset,
                    made,
                    workspace=options.workspace_of(context),
                    budget=budget,
                    device=device,
                    environment=options.environment(),
                )
            except SegwrightError as error:  # the plan is made all the same
                print_line(f"what a training takes could not be measured: {error}")
            else:
                _print_costs(costs)
    print_line(f"written to {file}")


def preprocess(
    context: typer.Context,
    dataset: options.Dataset,
    plans: options.Plans = "nnUNetPlans",
    config: options.Configurations = None,
    trust_code: options.TrustCode = False,
    workers: options.Workers = None,
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Crop, normalise and resample all cases; up-to-date cases are kept."""
    from segwright import api

    reports = api.preprocess(
        dataset,
        workspace=options.workspace_of(context),
        environment=options.environment(),
        plans=plans,
        configurations=options.split_list(config) or None,
        workers=workers,
        wait=not no_wait,
        trust_code=options.code_trust(trust_code),
    )
    if as_json:
        print_json({name: {"done": report.done, "kept": report.skipped} for name, report in reports.items()})
        return
    for name, report in reports.items():
        print_line(f"{name}: {len(report.done)} cases preprocessed, {len(report.skipped)} kept")


def _print_costs(costs: Mapping[str, ConfigurationCost]) -> None:
    from segwright.core.resources import format_bytes
    from segwright.training.monitoring.logbook import duration_text

    rows = []
    for name, cost in costs.items():
        training = cost.training
        total = "" if training.num_epochs is None else duration_text(training.num_epochs * training.epoch_s)
        memory = "-" if training.memory_bytes is None else format_bytes(training.memory_bytes)
        gpu = format_bytes(training.device_memory_bytes) if training.device_memory_bytes else "-"
        disk = [format_bytes(size) for size in (cost.cases_bytes, training.checkpoint_bytes)]
        times = [f"{training.step_s:.3g} s", duration_text(training.epoch_s), total]
        rows.append([name, *times, memory, gpu, *disk])
    columns = ["configuration", "step", "epoch", "all epochs", "memory", "GPU memory", "cases", "checkpoints"]
    print_table("About what a training of one fold takes on this machine", columns, rows)


def _sizes(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" if abs(value) < 1e5 else f"{value:.0f}" for value in values)
