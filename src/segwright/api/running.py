"""Run all stages from raw files to validated models; a demo on phantoms."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segwright.api import (
    budgeting,
    evaluating,
    predicting,
    preparing,
    reporting,
    selecting,
    splitting,
    training,
    training_runs,
)
from segwright.api.checks import training_options
from segwright.api.checks.training_options import TrainOptions
from segwright.api.checks.usability import find_shortcoming
from segwright.api.cluster import distributing
from segwright.api.models.finding import find_model
from segwright.api.plans.making import DEFAULT_OPTIONS, PlanOptions, make_plan
from segwright.api.session import Session, dataset_lock, open_session, trainer_name
from segwright.core.extensions.given import reference_to
from segwright.core.extensions.trust import TrustCode
from segwright.core.files.names import below
from segwright.data import phantom
from segwright.data.crossval.groups import Groups
from segwright.data.dataset import NO_ENVIRONMENT
from segwright.data.plan import Plan
from segwright.planning import presets
from segwright.report.results import DemoResult, RunReport, dice_by_name
from segwright.workspace import Workspace, name_of_model

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from segwright.core.interrupt import StopRequest
    from segwright.training.distributed.context import DistributedContext

logger = getLogger(__name__)

DEMO_DATASET = "Dataset900_Phantom"
DEMO_CONFIGURATION = "3d_fullres"
DEMO_BUDGET_S = 120.0
"""Training time of the demo in seconds; prediction and figures take the rest of its four minutes."""

_DEMO_PARTS = ("predictions", "pictures")
"""Output folders of a demo beside raw, preprocessed and results."""


def run(
    dataset: str | Path | int,
    *,
    workspace: Workspace | None = None,
    configurations: Sequence[str] | None = None,
    folds: Sequence[int] | Literal["all"] | None = None,
    budget: str | float | None = None,
    preset: str = "default",
    plans: str | None = None,
    gpu_memory_gb: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    network: training.Component | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
    loss: training.Component | None = None,
    optimizer: training.Component | None = None,
    schedule: training.Component | None = None,
    sampler: training.Component | None = None,
    augmentation: training.Component | None = None,
    callbacks: Sequence[object] | None = None,
    pretrained: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    trainer: str | type | None = None,
    nnunet_trainer: str | Path | None = None,
    name: str | None = None,
    groups: Groups | None = None,
    stratify: bool | None = None,
    wait: bool = True,
    executor: Executor | None = None,
    images: Path | str | None = None,
    output: Path | str | None = None,
    parts: int = 1,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    distributed: DistributedContext | None = None,
    stop: StopRequest | None = None,
    trust_code: TrustCode = False,
) -> RunReport:
    """Check, fingerprint, plan, preprocess, train, validate and select; up-to-date results are kept.

    If it is killed and started again, it continues with the missing parts.

    Args:
        dataset: Folder, name or id.
        workspace: Where results are written; `./segwright-work` by default.
        configurations: Configurations to train; by default 3d_fullres, or 2d if the plan has no other.
        folds: Fold numbers, or `all` for every fold; 0 by default.
        budget: Training time of each fold, such as `10m` or seconds; 1000 epochs without it. Where the machine is too
            slow for the plans, others are made that fit the time (`docs/how-to/time-budget.md`).
        preset: Planner preset.
        plans: Name of the plans, also under a budget; existing plans of that name are used. By default the preset's.
        gpu_memory_gb: Target GPU memory of the plans in GB; by default that of existing plans, else the preset's.
        device: auto, cpu, mps or a GPU.
        workers: Threads.
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
        groups: Which cases share a fold, and `stratify`, whether labels are spread evenly, as for `plan`.
        stratify: See `groups`.
        wait: Wait for other processes that make a part of the same; otherwise raise `LockHeldError`. Tasks of an
            executor wait.
        executor: Where configurations are preprocessed and folds are trained, several at once: any executor of
            `concurrent.futures` whose processes see the same folders. By default one after the other, in this process.
        images: A folder of images that the selected model predicts, and `output`, another folder.
        output: See `images`.
        parts: Number of tasks that an executor predicts `images` in.
        environment: Variables that paths in file lists may contain.
        distributed: The processes that share each training; each of them calls this function.
        stop: Request to save and stop after the current step.
        trust_code: Whether to import code that only files name, for instance a network in a checkpoint: False, True,
            or only the given references (`module:attr`).

    Returns:
        The folds with their scores, the stages that ran, what was skipped, the selected model, and its predictions.

    Examples:
        >>> report = run("raw/Dataset004_Hippocampus", folds=[0], budget="10m")  # doctest: +SKIP
        >>> report.folds[0].dice["mean"]  # doctest: +SKIP
    """
    chosen = training.training_settings(
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
    options = TrainOptions(settings=chosen, device=device, distributed=distributed, stop=stop)
    training_options.require_options(options)
    trust = training_options.trusted_code(trust_code, chosen, trainer)
    presets.preset(preset)
    session = open_session(
        dataset,
        workspace,
        environment=environment,
        trainer=trainer,
        model_name=model_name,
        trust=trust,
        split_options=splitting.split_options(groups, stratify=stratify),
        wait=wait,
    )
    session = training_options.with_nnunet_trainer(session, nnunet_trainer)
    if executor is not None:
        distributing.require_portable(session, options, executor)
    prediction = distributing.prediction_of_run(images, output, parts)
    if prediction is not None:
        distributing.require_predictable(session, prediction)
    numbers = splitting.chosen_folds(session, folds)
    planning = PlanOptions(preset=preset, name=plans, gpu_memory_gb=gpu_memory_gb)
    prepare = partial(
        _prepare, session, planning, configurations, numbers, options, workers=workers, preprocesses=executor is None
    )
    prepared = prepare() if distributed is None else _prepared_by_first(distributed, prepare)
    plan, names, todo, executed = prepared.plan, prepared.names, prepared.todo, list(prepared.executed)
    if executor is not None:
        graph = distributing.task_graph(session, plan, names, numbers, options, workers=workers, prediction=prediction)
        executed += distributing.run_tasks(graph, executor, todo, stop=stop)
    else:
        executed += _train_here(session, plan, todo, options)
    kept = set(itertools.product(names, numbers)) - set(todo)
    is_first = distributed is None or distributed.is_first
    for name, fold in sorted(kept) if is_first else ():
        training_runs.refresh_fold(session, plan, name, training_runs.fold_folder(session, plan, name, fold))
    folds_done = tuple(training_runs.finished_fold(session, plan, name, fold) for name in names for fold in numbers)
    if not is_first:
        return RunReport(folds=folds_done, executed_stages=tuple(executed))
    selection = selecting.select_after_run(session, plan, names, numbers, device=device, workers=workers)
    executed += ["select"] * selection.is_new
    if prediction is not None and executor is None:
        records = predicting.predict(
            selection.model, prediction.images, prediction.output, device=device, trust_code=trust, wait=wait
        )
        executed += ["predict"] * (not all(record.kept for record in records))
    report_html = reporting.report_of_run(
        folds_done[0].model.parent, workspace=session.workspace, dataset=session.dataset.folder
    )
    unapplied = training_runs.describe_ignored_settings(session, plan, kept, chosen)
    return RunReport(
        folds=folds_done,
        executed_stages=tuple(executed),
        report_html=report_html,
        selection=selection,
        predictions=None if prediction is None else prediction.output,
        unapplied_changes=unapplied,
    )


def demo(
    folder: Path | str = "segwright-demo",
    *,
    budget: str | float | None = None,
    fresh: bool = False,
    device: str = "auto",
) -> DemoResult:
    """Make a phantom dataset, train, predict and score unseen cases, and draw figures.

    An interrupted demo continues; a finished one is shown again.

    Args:
        folder: Output folder.
        budget: Training time; two minutes by default.
        fresh: Delete an earlier demo first.
        device: auto, cpu, mps or a GPU.

    Examples:
        >>> demo("segwright-demo", budget="2m")  # doctest: +SKIP
    """
    from segwright.api.drawing.overlaying import overlay  # imports matplotlib

    start = time.monotonic()
    options = TrainOptions(settings={"budget_s": budgeting.parse_duration(budget) or DEMO_BUDGET_S}, device=device)
    training_options.require_options(options)
    place = Path(folder).absolute()
    workspace = Workspace.under(place)
    predictions, pictures = (below(place, part) for part in _DEMO_PARTS)
    raw = below(place, workspace.raw.name, DEMO_DATASET)
    for part in phantom.FOLDERS:  # raises for links out of the folder before anything is deleted or written
        below(place, workspace.raw.name, DEMO_DATASET, part)
    if fresh:
        _remove_demo(place)
    workspace.require_writable()
    logger.info("making a phantom dataset in %s", raw)
    phantom.write_dataset(raw)
    session = open_session(raw, workspace)
    with dataset_lock(session, "measuring and planning"):
        measured, _ = preparing.make_fingerprint(session)
        plan, _ = make_plan(session, measured, DEFAULT_OPTIONS)
    if not preparing.cases_are_fresh(session, plan, DEMO_CONFIGURATION):
        preparing.preprocess_cases(session, plan, DEMO_CONFIGURATION)
    # Train on all cases: the score comes from the test cases, so none is held out.
    was_trained = training_runs.is_trained(training_runs.fold_folder(session, plan, DEMO_CONFIGURATION, "all"))
    model = training_runs.train_only(session, plan, DEMO_CONFIGURATION, "all", options=options)
    logger.info("predicting unseen cases")
    predicting.predict(model, raw / "imagesTs", predictions, overwrite=not was_trained, device=device)
    scores = evaluating.evaluate(raw / "labelsTs", predictions, dataset_json=raw / "dataset.json")
    named = dice_by_name(scores.scores, scores.labels)
    return DemoResult(
        mean_dice=named.pop("mean"),
        per_label=named,
        seconds=time.monotonic() - start,
        model=model,
        pictures=overlay(predictions, pictures, reference=raw, workspace=workspace),
        report_html=reporting.report_of_run(model.parent, workspace=workspace, dataset=raw, scores=[scores.file]),
        shortcoming=find_shortcoming(
            [training_runs.fold_folder(session, plan, DEMO_CONFIGURATION, "all")], scores.scores.mean_dice
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What is ready to be trained: configurations `names` of a plan, of which the folds in `todo` are not finished."""

    plan: Plan
    names: tuple[str, ...]
    todo: tuple[tuple[str, int], ...]
    executed: tuple[str, ...] = ()


def _prepare(
    session: Session,
    planning: PlanOptions,
    configurations: Sequence[str] | None,
    folds: Sequence[int],
    options: TrainOptions,
    *,
    workers: int | None,
    preprocesses: bool,
) -> _Prepared:
    """Check, fingerprint and plan; preprocess too, unless tasks do."""
    settings = options.settings
    with dataset_lock(session, "measuring and planning"):
        measured, was_measured = preparing.make_fingerprint(session, workers=workers)
        splitting.write_splits(session, workers=workers)
        plan, was_planned = make_plan(session, measured, planning, prefer_existing=True)
        names = distributing.chosen_configurations(plan, configurations)
        is_plain = planning.name is None and session.trainer is None and session.nnunet_trainer is None
        if is_plain and "budget_s" in settings and not training_runs.has_training(session, plan, names, folds):
            wanted = names if configurations else None
            plan, names, was_sized = budgeting.plan_for_budget(session, plan, wanted, settings, device=options.device)
            was_planned |= was_sized
    executed = ["fingerprint"] * was_measured + ["plan"] * was_planned
    todo = [(name, fold) for name in names for fold in folds if not _is_finished(session, plan, name, fold)]
    for name in names:
        training_runs.require_trainable(session, plan, name, [fold for each, fold in todo if each == name], settings)
    for name in preparing.configurations_to_preprocess(plan, names) if preprocesses else ():
        was_preprocessed = distributing.preprocess_if_needed(session, plan, name, workers=workers)
        executed += [f"preprocess {name}"] * was_preprocessed
    return _Prepared(plan=plan, names=names, todo=tuple(todo), executed=tuple(executed))


def _prepared_by_first(distributed: DistributedContext, prepare: Callable[[], _Prepared]) -> _Prepared:
    """Prepare in the first process of a training, and return what the others find when it is done."""
    made = prepare() if distributed.is_first else None
    values = distributed.broadcast(None if made is None else (made.plan.to_json(), made.names, made.todo))
    if made is not None:
        return made
    assert values is not None, "the first process prepared"
    plan, names, todo = values
    pairs = tuple((name, fold) for name, fold in todo)  # JSON has no tuples
    return _Prepared(plan=Plan.from_json(plan), names=tuple(names), todo=pairs)


def _train_here(session: Session, plan: Plan, todo: Sequence[tuple[str, int]], options: TrainOptions) -> Iterator[str]:
    """Train folds one after the other; yield the stages that were executed."""
    for name, fold in todo:
        logger.info("training %s, fold %s", name, fold)
        if training_runs.complete_fold(session, plan, name, fold, options=options):
            yield f"train {name} fold {fold}"


def _is_finished(session: Session, plan: Plan, name: str, fold: int) -> bool:
    folder = training_runs.fold_folder(session, plan, name, fold)
    return training_runs.is_trained(folder) and training_runs.is_validated(folder)


def _remove_demo(folder: Path) -> None:
    """Delete an earlier demo, and only files that a demo made."""
    for part in ("raw", "preprocessed", "results"):
        shutil.rmtree(below(folder, part, DEMO_DATASET), ignore_errors=True)
    for part in _DEMO_PARTS:
        shutil.rmtree(below(folder, part), ignore_errors=True)
