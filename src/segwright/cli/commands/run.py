"""The commands `run` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import executors, options
from segwright.cli.commands.selecting import print_selection
from segwright.cli.dist_env import device_of, process_group, rank_info_from_env
from segwright.cli.signals import stop_on_signals
from segwright.cli.tables import number, print_json, print_line, print_scores, print_table

DEMO_WORK = Path("segwright-demo")


def run(
    context: typer.Context,
    dataset: options.Dataset,
    config: options.Configurations = None,
    folds: options.FoldsToTrain = None,
    budget: options.Budget = None,
    epochs: options.Epochs = None,
    iterations: options.Iterations = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    deterministic: options.Deterministic = False,
    cache: options.Cache = None,
    network: options.Network = None,
    network_arg: options.NetworkArg = None,
    pretrained: options.Pretrained = None,
    set_values: options.SetValues = None,
    trainer: options.Trainer = None,
    nnunet_trainer: options.NnunetTrainer = None,
    name: options.Name = None,
    groups: options.Groups = None,
    stratify: options.Stratify = None,
    trust_code: options.TrustCode = False,
    preset: options.Preset = "default",
    plans: options.PlansOfRun = None,
    gpu_memory: options.GpuMemory = None,
    device: options.Device = "auto",
    gpus: options.Gpus = 1,
    dask: options.Dask = None,
    local_gpus: options.LocalGpus = None,
    local_cpus: options.LocalCpus = None,
    images: options.ImagesOfRun = None,
    output: options.OutputOfRun = None,
    parts: options.PartsOfEngine = None,
    workers: options.Workers = None,
    no_wait: options.NoWait = False,
    as_json: options.AsJson = False,
) -> None:
    """Run all stages: check, fingerprint, plan, preprocess, train, select, predict. Run again to continue."""
    from segwright import api

    chosen = options.train_settings(
        set_values=set_values,
        epochs=epochs,
        iterations=iterations,
        batch_size=batch_size,
        seed=seed,
        deterministic=deterministic,
        cache=cache,
    )
    executors.require_one_engine(dask=dask, local_gpus=local_gpus, local_cpus=local_cpus, gpus=gpus)
    device = executors.task_device(device, local_cpus)
    rank_info = rank_info_from_env(options.environment())
    if rank_info is None and gpus > 1:
        from segwright.cli import launch

        launch.start(gpus, device)
        return
    with (
        stop_on_signals() as stop,
        process_group(rank_info, device) as distributed,
        executors.task_executor(device, dask=dask, local_gpus=local_gpus, local_cpus=local_cpus) as executor,
    ):
        report = api.run(
            dataset,
            workspace=options.workspace_of(context),
            environment=options.environment(),
            configurations=options.split_list(config) or None,
            folds=options.fold_numbers(folds),
            budget=budget,
            preset=preset,
            plans=plans,
            gpu_memory_gb=gpu_memory,
            network=network,
            network_kwargs=api.keyword_values(network_arg or ()),
            pretrained=pretrained,
            settings=chosen,
            trainer=trainer,
            nnunet_trainer=nnunet_trainer,
            name=name,
            groups=groups,
            stratify=stratify,
            device=device_of(device, rank_info),
            workers=workers,
            wait=not no_wait,
            distributed=distributed,
            executor=executor,
            images=images,
            output=output,
            parts=parts or (1 if executor is None or images is None else executor.size),
            stop=stop,
            trust_code=options.code_trust(trust_code),
        )
    if rank_info is not None and rank_info.rank > 0:
        return
    if as_json:
        print_json(report.to_json())
        return
    rows = {f"{item.configuration} fold {item.fold}": item.dice for item in report.folds}
    print_scores("Dice of held-out cases", rows)
    for model in report.models:
        print_line(f"model: {model}")
    if report.selection is not None:
        print_selection(report.selection)
    if report.predictions is not None:
        print_line(f"predictions: {report.predictions}")
    if report.report_html is not None:
        print_line(f"report: {report.report_html}")
    if report.unapplied_changes:
        print_line(report.unapplied_changes)
    elif not report.executed_stages:
        print_line("nothing to do: everything is up to date")


def demo(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder (default: --work or ./segwright-demo).")
    ] = None,
    budget: options.Budget = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo and start again.")] = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train on a phantom dataset, predict and score unseen cases, draw figures; takes four minutes."""
    from segwright import api

    folder = output or context.obj or DEMO_WORK
    result = api.demo(folder, budget=budget, fresh=fresh, device=device)
    if as_json:
        print_json(result.to_json())
        return
    rows = [[name, number(dice)] for name, dice in [*result.per_label.items(), ("mean", result.mean_dice)]]
    print_table("Dice on unseen cases", ["structure", "Dice"], rows)
    print_line(f"figures (reference above, prediction below): {result.pictures[0].parent}")
    for picture in result.pictures:
        print_line(f"  {picture}")
    print_line(f"model: {result.model}")
    if result.report_html is not None:
        print_line(f"report: {result.report_html}")
    if result.shortcoming:
        print_line(result.shortcoming)
    print_line(f"{result.seconds:.0f} s in all")
