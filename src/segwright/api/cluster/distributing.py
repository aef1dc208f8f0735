"""The steps of a run as tasks: list them, and run one of them in any process."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from segwright.api import budgeting, predicting, preparing, selecting, splitting, training, training_runs
from segwright.api.checks import training_options
from segwright.api.checks.training_options import TrainOptions
from segwright.api.cluster.execution import run_graph, stop_when_exists
from segwright.api.cluster.tasks import (
    Prediction,
    PredictSettings,
    RunSettings,
    Settings,
    Task,
    TaskGraph,
    TaskResult,
    build_graph,
)
from segwright.api.plans.making import DEFAULT_PLANS, load_plan
from segwright.api.session import Session, open_session, trainer_name
from segwright.core.errors import ConfigError, SegwrightError
from segwright.core.extensions.given import GivenObject, reference_to
from segwright.core.extensions.trust import CodeTrust, TrustCode
from segwright.core.files.atomic_io import temporary_beside
from segwright.core.files.names import require_output_outside_input
from segwright.data.cases import variables_in
from segwright.data.dataset import NO_ENVIRONMENT, usable_cases
from segwright.data.plan import Plan
from segwright.training.config import TrainConfig
from segwright.workspace import Workspace, name_of_model

if TYPE_CHECKING:
    from segwright.core.interrupt import StopRequest

logger = getLogger(__name__)


def tasks(
    dataset: str | Path | int,
    *,
    workspace: Workspace | None = None,
    configurations: Sequence[str] | None = None,
    folds: Sequence[int] | Literal["all"] | None = None,
    budget: str | float | None = None,
    plans: str = DEFAULT_PLANS,
    settings: Mapping[str, Any] | None = None,
    network: training.Component | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
    pretrained: Path | str | None = None,
    trainer: str | type | None = None,
    nnunet_trainer: str | Path | None = None,
    name: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    images: Path | str | None = None,
    output: Path | str | None = None,
    parts: int = 1,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trust_code: TrustCode = False,
) -> TaskGraph:
    """Return the tasks of a run with existing plans, and which of them need which; nothing is run or written.

    A task is a value that JSON holds, and runs in any process that sees the same folders, by `run_task`.

    Args:
        dataset: Folder, name or id.
        workspace: Where results are written; `./segwright-work` by default.
        configurations: Configurations to train; by default 3d_fullres, or 2d if the plan has no other.
        folds: Fold numbers, or `all` for every fold; 0 by default.
        budget: Training time of each fold. Plans that `plan` has made for it are used.
        plans: Name of existing plans.
        settings: Further fields of `TrainConfig`.
        network: A name or `module:attr`, or a function or class that a module defines.
        network_kwargs: Keyword arguments of the network.
        pretrained: Model folder or checkpoint with initial weights.
        trainer: A subclass of `Trainer` or its reference.
        nnunet_trainer: A file with a subclass of nnU-Net's `nnUNetTrainer`.
        name: Name of the model.
        device: auto, cpu, mps or a GPU.
        workers: Threads of a task.
        images: A folder of images that the selected model predicts, and `output`, another folder.
        output: See `images`.
        parts: Number of tasks that the prediction is divided into.
        environment: Variables that paths in file lists may contain.
        trust_code: Whether to import code that only files name, as for `run`.

    Raises:
        SegwrightError: dataset, plans, folds or a setting are invalid.
    """
    chosen = training.training_settings(
        budget, settings, network=network, network_kwargs=network_kwargs, pretrained=pretrained
    )
    reference = None if trainer is None else reference_to(trainer)
    session = open_session(
        dataset,
        workspace,
        environment=environment,
        trainer=reference,
        model_name=name_of_model(name, trainer_name(reference), chosen.get("network")),
        trust=training_options.trusted_code(trust_code, chosen, reference),
    )
    session = training_options.with_nnunet_trainer(session, nnunet_trainer)
    options = TrainOptions(settings=chosen, device=device)
    require_portable(session, options)
    plan = load_plan(session, plans)
    names = chosen_configurations(plan, configurations)
    numbers = splitting.chosen_folds(session, folds)
    is_plain = session.trainer is None and session.nnunet_trainer is None
    if is_plain and "budget_s" in chosen and not training_runs.has_training(session, plan, names, numbers):
        sized = budgeting.sized_before(session, plan, names if configurations else None, chosen)
        plan, names = sized or (plan, names)
    return task_graph(
        session,
        plan,
        names,
        numbers,
        options,
        workers=workers,
        prediction=prediction_of_run(images, output, parts),
    )


def task_graph(
    session: Session,
    plan: Plan,
    names: Sequence[str],
    folds: Sequence[int],
    options: TrainOptions,
    *,
    workers: int | None = None,
    prediction: Prediction | None = None,
) -> TaskGraph:
    """Return the tasks of a run whose plan exists.

    Args:
        session: dataset and workspace.
        plan: its plan.
        names: configurations to train.
        folds: to train.
        options: of the trainings.
        workers: threads of a task.
        prediction: what the selected model predicts.
    """
    config = TrainConfig.from_mapping(options.settings)
    workspace, trust, loaded = session.workspace, session.trust, session.nnunet_trainer
    run = RunSettings(
        dataset=session.dataset.folder.absolute(),
        raw=workspace.raw.absolute(),
        preprocessed=workspace.preprocessed.absolute(),
        results=workspace.results.absolute(),
        work=None if workspace.work is None else workspace.work.absolute(),
        plans=plan.plans_name,
        configurations=tuple(names),
        folds=tuple(folds),
        model_name=session.model_name,
        settings=config.model_dump(mode="json", exclude_unset=True),
        trainer=session.trainer,
        nnunet_trainer=None if loaded is None else f"{loaded.file.absolute()}:{loaded.class_name}",
        device=options.device,
        workers=workers,
        environment=_used_variables(session),
        trust_all=trust.everything,
        trusted=tuple(sorted(trust.references)),
        code_folder=trust.folder,
        prediction=prediction,
    )
    num_folds = len(splitting.dataset_splits(session, write=False, stratify=False))
    return build_graph(run, plan, num_folds=num_folds)


def require_portable(session: Session, options: TrainOptions, executor: Executor | None = None) -> None:
    """Check that other processes can run the tasks, before any work starts.

    Raises:
        ConfigError: an object was given that no other process can import, or threads would share random numbers.
    """
    if options.distributed is not None:
        raise ConfigError(
            "executor: several processes share each training already; give either executor or distributed"
        )
    config = TrainConfig.from_mapping(options.settings)
    for setting, reference in (*config.references(), ("network", config.network), ("trainer", session.trainer)):
        if isinstance(reference, GivenObject):
            raise ConfigError(
                f"{setting} {reference}: other processes cannot import it; define it in a module and give "
                "'module:attr', or run without an executor"
            )
    if config.deterministic and isinstance(executor, ThreadPoolExecutor):
        raise ConfigError(
            "deterministic: trainings in threads of one process share torch's random numbers and choice of kernels; "
            "give an executor of processes"
        )


def run_tasks(
    graph: TaskGraph, executor: Executor, todo: Collection[tuple[str, int]], *, stop: StopRequest | None = None
) -> list[str]:
    """Run the tasks of a graph; return the names of those that had something to do.

    Args:
        graph: the tasks.
        executor: where they run.
        todo: configurations and folds that are not finished; trainings of others are left out.
        stop: request to stop.

    Raises:
        Interrupted: a stop was requested; the same call continues.
        TaskError: tasks failed.
    """
    run = graph.run.model_copy(update={"stop_file": temporary_beside(graph.run.results / "stop")})
    finished, needed = set[str](), set[str]()
    for task in reversed(graph.tasks):
        is_todo = task.name in needed if task.for_next_stage else (task.configuration, task.fold) in todo
        if task.verb == "train" and not is_todo:
            finished.add(task.name)
        else:
            needed.update(task.needs)
    graph = graph.model_copy(update={"run": run})
    results = run_graph(graph, run_task, executor, finished=finished, stop=stop)
    return [result.name for result in results if result.is_new]


def run_task(run: Settings, task: Task, *, stop: StopRequest | None = None) -> TaskResult:
    """Run one task as far as needed, in any process; an error of the user is returned.

    Args:
        run: settings of its graph, of a run or of a prediction.
        task: a task of the graph; those that it needs are finished.
        stop: request to stop; the stop file of the run is one, too.
    """
    start = time.monotonic()
    try:
        with stop_when_exists(run.stop_file, stop) as request:
            if isinstance(run, PredictSettings):
                ended = _predict_part(run, task)
            else:
                ended = TaskResult(name=task.name, is_new=_perform(run, task, request))
    except SegwrightError as error:
        ended = TaskResult(name=task.name, error=error.lines(), exit_code=error.exit_code)
    return ended.model_copy(update={"seconds": time.monotonic() - start})


def _perform(run: RunSettings, task: Task, stop: StopRequest) -> bool:
    """Run one task; return whether anything was missing."""
    session = session_of(run)
    if task.verb == "predict":
        return _predict(session, run, task)
    plan = load_plan(session, run.plans)
    if task.verb == "select":
        names, folds = run.configurations, run.folds
        return selecting.select_after_run(session, plan, names, folds, device=run.device, workers=run.workers).is_new
    assert task.configuration is not None, f"{task.name}: has a configuration"
    if task.verb == "preprocess":
        return preprocess_if_needed(session, plan, task.configuration, workers=run.workers)
    assert task.fold is not None, f"{task.name}: has a fold"
    options = TrainOptions(settings=run.settings, device=run.device, stop=stop)
    if task.for_next_stage:
        return training_runs.train_for_next_stage(session, plan, task.configuration, task.fold, options=options)
    return training_runs.complete_fold(session, plan, task.configuration, task.fold, options=options)


def session_of(run: RunSettings) -> Session:
    """Return the dataset and workspace of a run.

    Raises:
        SegwrightError: the dataset is invalid, the workspace is not writable, or code cannot be imported.
    """
    trust = CodeTrust(references=frozenset(run.trusted), everything=run.trust_all, folder=run.code_folder)
    session = open_session(
        run.dataset,
        run.workspace,
        environment=run.environment,
        trainer=run.trainer,
        model_name=run.model_name,
        trust=trust,
    )
    return training_options.with_nnunet_trainer(session, run.nnunet_trainer)


def _predict(session: Session, run: RunSettings, task: Task) -> bool:
    assert run.prediction is not None, "the graph of a prediction says of what"
    assert task.part is not None, f"{task.name}: has a part"
    records = predicting.predict(
        session.workspace.selected_folder(session.name),
        run.prediction.images,
        run.prediction.output,
        device=run.device,
        trust_code=session.trust,
        part=task.part,
        parts=run.prediction.parts,
    )
    return not all(record.kept for record in records)


def _predict_part(run: PredictSettings, task: Task) -> TaskResult:
    from segwright.inference.prediction import CaseRecord

    assert task.part is not None, f"{task.name}: has a part"
    options: dict[str, Any] = run.options
    records = predicting.predict(
        run.models,
        run.images[0] if len(run.images) == 1 else run.images,
        run.output,
        device=run.device,
        trust_code=CodeTrust(references=frozenset(run.trusted), everything=run.trust_all, folder=run.code_folder),
        part=task.part,
        parts=run.parts,
        **options,
    )
    adapter: TypeAdapter[list[CaseRecord]] = TypeAdapter(list[CaseRecord])
    documents = tuple(adapter.dump_python(records, mode="json"))
    return TaskResult(name=task.name, is_new=not all(each.kept for each in records), records=documents)


def prediction_of_run(images: Path | str | None, output: Path | str | None, parts: int) -> Prediction | None:
    """Return what the selected model of a run predicts; None if it does not predict.

    Raises:
        ConfigError: images are given without output or the other way round, or the number of parts does not fit.
    """
    if (images is None) != (output is None):
        raise ConfigError("give images (-i) and output (-o) together, or neither")
    if parts < 1 or (images is None and parts != 1):
        raise ConfigError(f"{parts} parts: expected a number from 1 on, together with images (-i) and output (-o)")
    if images is None or output is None:
        return None
    return Prediction(images=Path(images).absolute(), output=Path(output).absolute(), parts=parts)


def require_predictable(session: Session, prediction: Prediction) -> None:
    """Check the images to predict before anything is trained.

    Raises:
        SegwrightError: there are none, channels are missing, or the output is inside of their folder.
    """
    description = session.dataset.description
    usable_cases(prediction.images, description.file_ending, len(description.channel_names))
    require_output_outside_input(prediction.images, prediction.output)


def _used_variables(session: Session) -> dict[str, str]:
    """Return the variables that the file lists of the dataset contain; others are nobody's business."""
    names = variables_in(json.dumps(session.dataset.description.raw()))
    return {name: session.environment[name] for name in sorted({*names} & session.environment.keys())}


def chosen_configurations(plan: Plan, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the configurations to train after checking that they exist."""
    if wanted:
        for name in wanted:
            plan.configuration(name)
        return tuple(dict.fromkeys(wanted))
    name = plan.default_configuration
    logger.info("configuration %s; --config trains others of %s", name, ", ".join(plan.configuration_names))
    return (name,)


def preprocess_if_needed(session: Session, plan: Plan, name: str, *, workers: int | None = None) -> bool:
    """Preprocess a configuration unless its cases are up to date; return whether a case was missing or outdated."""
    if preparing.cases_are_fresh(session, plan, name):
        return False
    return bool(preparing.preprocess_cases(session, plan, name, workers=workers).done)
