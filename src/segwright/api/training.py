"""Train one fold; parse training settings given as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from segwright.api.budgeting import parse_duration
from segwright.api.checks.one_model import Fold, require_no_checkpoint, require_same_settings
from segwright.api.checks.staleness import outdated_results
from segwright.api.checks.training_options import TrainOptions, require_options, trusted_code, with_nnunet_trainer
from segwright.api.models.finding import find_model
from segwright.api.plans.making import DEFAULT_PLANS, load_plan
from segwright.api.preparing import cases_are_fresh, preprocess_cases
from segwright.api.session import open_session, trainer_name
from segwright.api.splitting import require_folds, warn_of_unused_cases
from segwright.api.training_runs import complete_fold, finished_fold, fold_folder, is_trained, require_trainable
from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.given import reference_to
from segwright.core.extensions.trust import TrustCode
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.report.results import TrainedFold
from segwright.training.config import COMPONENTS, LISTS, TrainConfig
from segwright.workspace import TRAIN_JSON, Workspace, name_of_model

if TYPE_CHECKING:
    from segwright.core.interrupt import StopRequest
    from segwright.training.distributed.context import DistributedContext

logger = getLogger(__name__)

Component: TypeAlias = str | Callable[..., Any]
"""A registered name, `module:attr`, or the function, class or module itself."""


def train(
    dataset: str | Path | int,
    *,
    configuration: str,
    fold: Fold,
    workspace: Workspace | None = None,
    plans: str = DEFAULT_PLANS,
    budget: str | float | None = None,
    network: Component | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
    loss: Component | None = None,
    optimizer: Component | None = None,
    schedule: Component | None = None,
    sampler: Component | None = None,
    augmentation: Component | None = None,
    callbacks: Sequence[object] | None = None,
    pretrained: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    trainer: str | type | None = None,
    nnunet_trainer: str | Path | None = None,
    name: str | None = None,
    resume: bool = False,
    validate: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    wait: bool = True,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    distributed: DistributedContext | None = None,
    stop: StopRequest | None = None,
    trust_code: TrustCode = False,
) -> TrainedFold:
    """Train one fold of one configuration, then predict and score its held-out cases.

    Args:
        dataset: Folder, name or id.
        configuration: Configuration of the plan; its cases are preprocessed first if needed.
        fold: Fold to hold out, or `all` to train on every case.
        workspace: Where results are written; `./segwright-work` by default.
        plans: Name of existing plans.
        budget: Training time, such as `10m` or seconds; the learning rate schedule follows it.
        network: Network to use instead of the plan's: `residual-unet`, `module:function`, or a function, class or
            module (see `docs/how-to/extend.md`, as for the five components that follow).
        network_kwargs: Keyword arguments of the network.
        loss: Loss of one resolution.
        optimizer: Optimizer.
        schedule: Learning rate schedule.
        sampler: What chooses the case of each sample.
        augmentation: Augmentation recipe.
        callbacks: What is called at events of the training.
        pretrained: Model folder, checkpoint (also of nnU-Net or nnssl) or name of an installed one with initial
            weights; matching layers are used.
        settings: Further fields of `TrainConfig`, e.g. `num_epochs`.
        trainer: A subclass of `Trainer` that trains instead, or its reference `module:Class`.
        nnunet_trainer: A file with a subclass of nnU-Net's `nnUNetTrainer` that trains instead, `FILE.py` or
            `FILE.py:Class`; its code is run.
        name: Name of the model, the first part of the name of its folder; by default that of the trainer class,
            followed by the reference of a network of one's own.
        resume: Continue an interrupted training, which must exist; without it an existing training is an error, unless
            another process runs it, which is waited for.
        validate: `final` to score the held-out cases of a finished fold again; `best` to score them with
            `checkpoint_best` as well, in `validation_best`. A finished fold needs no `resume` for that.
        device: auto, cpu, mps or a GPU.
        workers: Threads of preprocessing.
        wait: Wait for other processes that make a part of the same; otherwise raise `LockHeldError`.
        environment: Variables that paths in file lists may contain.
        distributed: The processes that share the training; each of them calls this function.
        stop: Request to save and stop after the current step.
        trust_code: Whether to import code that only files name, for instance a network in a checkpoint: False, True,
            or only the given references (`module:attr`).

    Raises:
        Interrupted: it was asked to stop; continue with `resume`.
        SegwrightError: dataset, plan, fold, a setting or the device is invalid, or the fold already has a training.

    Examples:
        >>> train(4, configuration="3d_fullres", fold=0, loss="dice_topk10")  # doctest: +SKIP
    """
    chosen = training_settings(
        budget,
        settings,
        network_kwargs=network_kwargs,
        pretrained=None if pretrained is None else find_model(pretrained, workspace),
        network=network,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        sampler=sampler,
        augmentation=augmentation,
        callbacks=callbacks,
    )
    trainer = None if trainer is None else reference_to(trainer)
    model_name = name_of_model(name, trainer_name(trainer), chosen.get("network"))
    options = TrainOptions(settings=chosen, device=device, distributed=distributed, stop=stop, validate=validate)
    require_options(options)
    trust = trusted_code(trust_code, chosen, trainer)
    session = open_session(
        dataset,
        workspace,
        environment=environment,
        trainer=trainer,
        model_name=model_name,
        trust=trust,
        wait=wait,
    )
    if validate == "best" and nnunet_trainer is not None:
        raise ConfigError("validate 'best' works with trainers of Segwright only; leave out nnunet_trainer or validate")
    session = with_nnunet_trainer(session, nnunet_trainer)
    plan = load_plan(session, plans)
    require_folds(session, [fold])
    if fold != "all":
        warn_of_unused_cases(session)
    require_trainable(session, plan, configuration, [fold], chosen)
    folder = fold_folder(session, plan, configuration, fold)
    if not resume and not (validate is not None and is_trained(folder)):
        require_no_checkpoint(folder)
    if resume and not (folder / TRAIN_JSON).is_file():
        raise ModelError(f"{folder}: there is no training to resume; leave out --resume")
    is_own = trainer is not None or nnunet_trainer is not None  # a user's trainer class may overrule the settings
    if is_trained(folder) and not is_own:
        require_same_settings(folder, chosen)
    if (distributed is None or distributed.is_first) and not cases_are_fresh(session, plan, configuration):
        preprocess_cases(session, plan, configuration, workers=workers)
    if distributed is not None:
        distributed.barrier()
    was_incomplete = complete_fold(session, plan, configuration, fold, options=options)
    if not (was_incomplete or is_own):  # another process may have trained it meanwhile
        require_same_settings(folder, chosen)
    trained = finished_fold(session, plan, configuration, fold, with_best=validate == "best")
    if distributed is None or distributed.is_first:
        for line in outdated_results(trained.model.parent):
            logger.warning("%s", line)
    return trained


def keyword_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` texts as keyword arguments; values are parsed as JSON if possible.

    >>> keyword_values(["width=48", "norm=batch"])
    {'width': 48, 'norm': 'batch'}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"'{pair}' is not KEY=VALUE; write for instance width=48")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{name}: a number with too many digits, or lists nested too deep, in '{text[:40]}...'"
            ) from error
    return values


def training_settings(
    budget: str | float | None,
    settings: Mapping[str, Any] | None = None,
    *,
    network_kwargs: Mapping[str, Any] | None = None,
    pretrained: Path | str | None = None,
    **components: Component | Sequence[object] | None,
) -> dict[str, Any]:
    """Return the given settings as fields of `TrainConfig`, components as references or `GivenObject`s.

    Raises:
        ConfigError: a component is neither a name nor an object.
    """
    chosen = {**(settings or {}), **{key: value for key, value in components.items() if value is not None}}
    objects = {key: value for key, value in chosen.items() if key in (*COMPONENTS, *LISTS)}
    checked = TrainConfig.from_mapping(objects)
    chosen.update({key: getattr(checked, key) for key in objects})
    if pretrained is not None:
        chosen["pretrained"] = str(Path(pretrained).absolute())
    if budget is not None:
        chosen["budget_s"] = parse_duration(budget)
    if network_kwargs:
        chosen["network_kwargs"] = dict(network_kwargs)
    return chosen
