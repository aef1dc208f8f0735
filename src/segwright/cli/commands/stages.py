"""The commands `check`, `fingerprint`, `plan` and `preprocess`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwright.cli import options
from segwright.cli.tables import number, print_json, print_line, print_table

if TYPE_CHECKING:
    from segwright.api import ConfigurationCost
    from segwright.data.plan import Plan
    from segwright.workspace import Workspace


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
    file = workspace.fingerprint_file(workspace.dataset_name(dataset))
    print_line(f"{len(found.spacings)} cases; written to {file}")


def plan(
    context: typer.Context,
    datasets: options.Datasets = None,
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
    if (from_fingerprint is None) != (dataset_json is None) or (from_fingerprint is None) == (not datasets):
        raise ConfigError("plan: give either DATASET, or --from-fingerprint FILE together with --dataset-json FILE")
    if from_fingerprint is not None and dataset_json is not None:
        if groups is not None or stratify is not None:
            raise ConfigError("plan: folds need cases; give DATASET instead of --from-fingerprint")
        if budget is not None:
            raise ConfigError("plan: --budget times steps on the dataset; give DATASET instead of --from-fingerprint")
        made = api.plan_from_fingerprint(from_fingerprint, dataset_json, options=settings)
        file = output or Path(f"{made.plans_name}.json")
        made.save(file)
        if as_json:
            print_json(made.to_json())
        else:
            _print_plan(made, explain=explain)
            print_line(f"written to {file}")
        return
    workspace = options.workspace_of(context)
    chosen = _raw_folders(workspace, datasets)
    if output is not None and len(chosen) > 1:
        raise ConfigError(f"plan: {output} is one file for {len(chosen)} datasets; leave out -o")
    environment = options.environment()
    documents: dict[str, Any] = {}
    for dataset in chosen:
        made = api.plan(
            dataset,
            workspace=workspace,
            options=settings,
            budget=budget,
            device=device,
            force=force,
            groups=groups,
            stratify=stratify,
            wait=not no_wait,
            environment=environment,
        )
        file = output or workspace.plans_file(dataset.name, made.plans_name)
        if output is not None:
            made.save(output)
        documents[dataset.name] = made.to_json()
        if as_json:
            continue
        _print_plan(made, explain=explain)
        if explain:
            try:
                costs = api.training_costs(
                    dataset, made, workspace=workspace, budget=budget, device=device, environment=environment
                )
            except SegwrightError as error:  # the plan is made all the same
                print_line(f"what a training takes could not be measured: {error}")
            else:
                _print_costs(costs)
        print_line(f"written to {file}")
    if as_json:
        print_json(documents if len(chosen) > 1 else documents.popitem()[1])


def preprocess(
    context: typer.Context,
    datasets: options.Datasets,
    plans: options.Plans = "nnUNetPlans",
    config: options.Configurations = None,
    trust_code: options.TrustCode = False,
    workers: options.Workers = None,
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Crop, normalise and resample all cases; up-to-date cases are kept."""
    from segwright import api

    workspace = options.workspace_of(context)
    chosen = _raw_folders(workspace, datasets)
    documents: dict[str, Any] = {}
    for dataset in chosen:
        reports = api.preprocess(
            dataset,
            workspace=workspace,
            environment=options.environment(),
            plans=plans,
            configurations=options.split_list(config) or None,
            workers=workers,
            wait=not no_wait,
            trust_code=options.code_trust(trust_code),
        )
        documents[dataset.name] = {name: {"done": found.done, "kept": found.skipped} for name, found in reports.items()}
        for name, report in reports.items() if not as_json else ():
            where = f"{dataset.name}, {name}" if len(chosen) > 1 else name
            print_line(f"{where}: {len(report.done)} cases preprocessed, {len(report.skipped)} kept")
    if as_json:
        print_json(documents if len(chosen) > 1 else documents.popitem()[1])


def _raw_folders(workspace: Workspace, datasets: Sequence[str] | None) -> tuple[Path, ...]:
    """Return the folders of datasets, each once; all of them exist before any work starts."""
    return tuple(dict.fromkeys(workspace.resolve_dataset(each) for each in datasets or ()))


def _print_plan(made: Plan, *, explain: bool) -> None:
    """Print the configurations of a plan, and its reasons."""
    from segwright import api

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
    print_table(
        f"{made.plans_name} of {made.dataset_name}",
        ["configuration", "spacing", "median size", "patch", "batch"],
        rows,
    )
    if explain:
        print(api.explain(made))


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
