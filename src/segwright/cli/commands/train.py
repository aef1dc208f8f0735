"""The command `train`."""

from __future__ import annotations

from typing import Annotated

import typer

from segwright.cli import options
from segwright.cli.dist_env import device_of, process_group, rank_info_from_env
from segwright.cli.signals import stop_on_signals
from segwright.cli.tables import print_json, print_line, print_scores


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
    nnunet_trainer: options.NnunetTrainer = None,
    name: options.Name = None,
    trust_code: options.TrustCode = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    validate: Annotated[
        str | None,
        typer.Option("--validate", metavar="best|final", help="Also score checkpoint_best, or the final one again."),
    ] = None,
    device: options.Device = "auto",
    gpus: options.Gpus = 1,
    workers: options.Workers = None,
    no_wait: options.NoWait = False,
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
    rank_info = rank_info_from_env(options.environment())
    if rank_info is None and gpus > 1:
        from segwright.cli import launch

        launch.start(gpus, device)
        return
    with stop_on_signals() as stop, process_group(rank_info, device) as distributed:
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
            nnunet_trainer=nnunet_trainer,
            name=name,
            resume=resume,
            validate=validate,
            device=device_of(device, rank_info),
            workers=workers,
            distributed=distributed,
            stop=stop,
            wait=not no_wait,
            trust_code=options.code_trust(trust_code),
        )
    if rank_info is not None and rank_info.rank > 0:
        return
    if as_json:
        print_json(trained.to_json())
    else:
        best = {} if trained.dice_best is None else {"Dice of checkpoint_best": trained.dice_best}
        print_scores(f"{config}, fold {fold}: Dice of held-out cases", {"Dice": trained.dice, **best})
        print_line(f"model: {trained.model}")
        if trained.shortcoming:
            print_line(trained.shortcoming)
