"""The commands `train`, `run` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.commands.selecting import print_selection
from segwright.cli.dist_env import device_of, joined, place_here
from segwright.cli.signals import heeding_signals
from segwright.cli.tables import number, print_json, print_line, print_scores, print_table

DEMO_WORK = Path("segwright-demo")


def train(
    context: typer.Context,
    dataset: options.Dataset,
    config: Annotated[str, typer.Option("--config", "-c", metavar="C", help="Configuration, e.g. 3d_fullres.")],
    fold: Annotated[
        str, typer.Option("--fold", metavar="K|all", help="Fold to hold out, or all to train on every case.")
    ],
    plans: options.Plans = "nnUNetPlans",
    epochs: options.Epochs = None,
    iterations: options.Iterations = None,
    batch_size: options.BatchSize = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    deterministic: options.Deterministic = False,
    cache: options.Cache = None,
    network: options.Network = None,
    network_arg: options.NetworkArg = None,
    pretrained: options.Pretrained = None,
    set_values: options.SetValues = None,
    trainer: options.Trainer = None,
    trust_code: options.TrustCode = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    device: options.Device = "auto",
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="Number of GPUs that share each batch.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Train one fold of one configuration, then predict and score its held-out cases."""
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
    place = place_here(options.environment())
    if place is None and gpus > 1:
        from segwright.cli import launch

        launch.start(gpus, device)
        return
    with heeding_signals() as stop, joined(place, device) as ranks:
        trained = api.train(
            dataset,
            workspace=options.workspace_of(context),
            environment=options.environment(),
            configuration=config,
            fold=options.one_fold(fold),
            plans=plans,
            budget=budget,
            network=network,
            network_kwargs=api.keyword_values(network_arg or ()),
            pretrained=pretrained,
            settings=chosen,
            trainer=trainer,
            resume=resume,
            device=device_of(device, place),
            ranks=ranks,
            stop=stop,
            trust_code=options.code_trust(trust_code),
        )
    if as_json and (place is None or place.rank == 0):
        print_json(trained.to_json())
    elif place is None or place.rank == 0:
        print_scores(f"{config}, fold {fold}: Dice of held-out cases", {"Dice": trained.dice})
        print_line(f"model: {trained.model}")
        if trained.shortcoming:
            print_line(trained.shortcoming)


def run(
    context: typer.Context,
    dataset: options.Dataset,
    config: options.Configurations = None,
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="0|0,1|all", help="Folds to train (default 0).")
    ] = None,
    budget: options.Budget = None,
    epochs: options.Epochs = None,
    cache: options.Cache = None,
    network: options.Network = None,
    network_arg: options.NetworkArg = None,
    pretrained: options.Pretrained = None,
    set_values: options.SetValues = None,
    trainer: options.Trainer = None,
    trust_code: options.TrustCode = False,
    preset: options.Preset = "default",
    plans: options.PlansOfRun = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Run all stages: check, fingerprint, plan, preprocess, train, select. Run again to continue."""
    from segwright import api

    with heeding_signals() as stop:
        report = api.run(
            dataset,
            workspace=options.workspace_of(context),
            environment=options.environment(),
            configurations=options.words(config) or None,
            folds=options.fold_numbers(folds),
            budget=budget,
            preset=preset,
            plans=plans,
            network=network,
            network_kwargs=api.keyword_values(network_arg or ()),
            pretrained=pretrained,
            settings=options.train_settings(set_values=set_values, epochs=epochs, cache=cache),
            trainer=trainer,
            device=device,
            workers=workers,
            stop=stop,
            trust_code=options.code_trust(trust_code),
        )
    if as_json:
        print_json(report.to_json())
        return
    rows = {f"{item.configuration} fold {item.fold}": item.dice for item in report.folds}
    print_scores("Dice of held-out cases", rows)
    for model in report.models:
        print_line(f"model: {model}")
    if report.selection is not None:
        print_selection(report.selection)
    if report.page is not None:
        print_line(f"report: {report.page}")
    if report.not_done:
        print_line(report.not_done)
    elif not report.done:
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
    print_line(f"figures (image, reference, prediction): {result.pictures[0].parent}")
    for picture in result.pictures:
        print_line(f"  {picture}")
    print_line(f"model: {result.model}")
    if result.page is not None:
        print_line(f"report: {result.page}")
    if result.shortcoming:
        print_line(result.shortcoming)
    print_line(f"{result.seconds:.0f} s in all")
