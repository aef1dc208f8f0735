"""Which tasks of a run are finished, read from the files that they write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segwright.api import preparing, selecting, training_runs
from segwright.api.cluster.distributing import session_of
from segwright.api.cluster.tasks import RunSettings, Task, TaskGraph
from segwright.api.plans.making import load_plan
from segwright.api.session import Session
from segwright.data.cases import Case
from segwright.data.dataset import usable_cases
from segwright.data.plan import Plan
from segwright.inference.folder.log_files import inputs_hash, log_files, matches, read_log
from segwright.inference.models.selected import has_predicted


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
    """Return whether every case of a part has a label map of its images as they are now, by the selected model."""
    assert run.prediction is not None, "the graph of a prediction says of what"
    output = run.prediction.output
    description = session.dataset.description
    cases, _ = usable_cases(run.prediction.images, description.file_ending, len(description.channel_names))
    cases = cases[task.part :: run.prediction.parts]
    logs = [read_log(file) for file in log_files(output)]
    recorded = [log for log in logs if all(_is_current(log.cases.get(case.identifier), case, output) for case in cases)]
    model = session.workspace.selected_folder(session.name)
    return not cases or any(has_predicted(model, log.model) for log in recorded)


def _is_current(entry: Mapping[str, Any] | None, case: Case, output: Path) -> bool:
    """Return whether a log's entry of a case is of its images, and the label map is as it was written."""
    if entry is None or entry.get("inputs") != inputs_hash(case):
        return False
    name, files = entry.get("output"), entry.get("files")
    return isinstance(files, dict) and matches(output / str(name), files.get(name), ignore_checksum=True)
