"""Which tasks of a run are finished, read from the files that they write."""

from __future__ import annotations

from segwright.api import preparing, selecting, training_runs
from segwright.api.cluster.distributing import session_of
from segwright.api.cluster.tasks import RunSettings, Task, TaskGraph
from segwright.api.plans.making import load_plan
from segwright.api.session import Session
from segwright.data.dataset import usable_cases
from segwright.data.plan import Plan


def unfinished_tasks(graph: TaskGraph) -> tuple[Task, ...]:
    """Return the tasks that a run still has to do, in order; nothing is run or written.

    A task that is missing makes those missing that need it, except that a finished training needs no preprocessed
    cases, nor a first stage, any more.

    Args:
        graph: all tasks of the run.

    Raises:
        SegwrightError: the dataset, the plans or the images to predict cannot be read.
    """
    session = session_of(graph.run)
    plan = load_plan(session, graph.run.plans)
    missing: dict[str, bool] = {}
    for task in graph.tasks:
        needs_all = task.verb in ("select", "predict")
        missing[task.name] = (needs_all and any(missing[name] for name in task.needs)) or not _is_finished(
            session, plan, graph.run, task
        )
    needed: set[str] = set()
    found = []
    for task in reversed(graph.tasks):
        is_wanted = task.name in needed or not (task.verb == "preprocess" or task.for_next_stage)
        if is_wanted and missing[task.name]:
            found.append(task)
            needed.update(task.needs)
    return tuple(reversed(found))


def _is_finished(session: Session, plan: Plan, run: RunSettings, task: Task) -> bool:
    if task.verb == "select":
        return selecting.is_selected_after_run(session, plan, run.configurations, run.folds)
    if task.verb == "predict":
        return _is_predicted(session, run, task)
    assert task.configuration is not None, f"{task.name}: has a configuration"
    if task.verb == "preprocess":
        return preparing.cases_are_fresh(session, plan, task.configuration)
    assert task.fold is not None, f"{task.name}: has a fold"
    folder = training_runs.fold_folder(session, plan, task.configuration, task.fold)
    return training_runs.is_trained(folder) and (task.for_next_stage or training_runs.is_validated(folder))


def _is_predicted(session: Session, run: RunSettings, task: Task) -> bool:
    """Return whether every case of a part has a label map; whether it is that of the model is checked by `predict`."""
    assert run.prediction is not None, "the graph of a prediction says of what"
    description = session.dataset.description
    cases, _ = usable_cases(run.prediction.images, description.file_ending, len(description.channel_names))
    files = [run.prediction.output / f"{case.identifier}{description.file_ending}" for case in cases]
    return all(file.is_file() for file in files[task.part :: run.prediction.parts])
