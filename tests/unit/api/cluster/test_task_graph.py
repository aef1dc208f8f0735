"""The graph of a run: which tasks there are, which need which, and how an executor runs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from segwright.api.cluster import execution
from segwright.api.cluster.execution import TaskError, run_graph, stop_when_exists
from segwright.api.cluster.tasks import Prediction, RunSettings, Task, TaskGraph, TaskResult, build_graph
from segwright.core.interrupt import EXIT_RESUMABLE, Interrupted, StopRequest
from segwright.data.plan import Plan

FULL, LOW, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
FUNCTIONS = ("data", "seg", "probabilities")
CONFIGURATION: dict[str, Any] = {
    "data_identifier": "full",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [16, 16, 16],
    "median_image_size_in_voxels": [16.0, 16.0, 16.0],
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    **{f"resampling_fn_{name}": "resample_data_or_seg_to_shape" for name in FUNCTIONS},
    **{f"resampling_fn_{name}_kwargs": {"is_seg": False, "order": 1} for name in FUNCTIONS},
    "architecture": {"network_class_name": "x.PlainConvUNet", "arch_kwargs": {}, "_kw_requires_import": []},
    "batch_dice": False,
}
PLAN = Plan.from_json(
    {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            FULL: CONFIGURATION,
            LOW: {**CONFIGURATION, "data_identifier": "low", "next_stage": CASCADE},
            CASCADE: {"inherits_from": FULL, "previous_stage": LOW},
        },
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
    }
)


def graph(*configurations: str, folds: tuple[int, ...] = (0,), **changes: Any) -> TaskGraph:
    places = {name: Path("/work") / name for name in ("dataset", "raw", "preprocessed", "results")}
    run = RunSettings(
        **places, plans="nnUNetPlans", configurations=configurations, folds=folds, model_name="Trainer", **changes
    )
    return build_graph(run, PLAN, num_folds=3)


def needs(graph: TaskGraph) -> dict[str, tuple[str, ...]]:
    return {task.name: task.needs for task in graph.tasks}


def test_a_fold_needs_its_cases_selection_all_folds_and_parts_the_selection() -> None:
    made = graph(FULL, folds=(0, 2), prediction=Prediction(images=Path("/in"), output=Path("/out"), parts=2))
    assert needs(made) == {
        "preprocess 3d_fullres": (),
        "train 3d_fullres fold 0": ("preprocess 3d_fullres",),
        "train 3d_fullres fold 2": ("preprocess 3d_fullres",),
        "select": ("train 3d_fullres fold 0", "train 3d_fullres fold 2"),
        "predict part 0 of 2": ("select",),
        "predict part 1 of 2": ("select",),
    }


def test_the_second_stage_of_a_cascade_needs_every_fold_of_the_first() -> None:
    made = graph(LOW, CASCADE, folds=(1,))
    low = [f"train {LOW} fold {fold}" for fold in range(3)]
    assert needs(made)[f"train {CASCADE} fold 1"] == (f"preprocess {CASCADE}", *low)
    assert needs(made)["select"] == (low[1], f"train {CASCADE} fold 1")
    assert [task.name for task in made.tasks if task.for_next_stage] == [low[0], low[2]]
    assert needs(graph(CASCADE))["select"] == (f"train {CASCADE} fold 0",)


def test_configurations_of_the_same_cases_are_preprocessed_once_and_one_after_the_other() -> None:
    found = needs(graph(FULL, CASCADE))
    assert [name for name in found if name.startswith("preprocess")] == [
        "preprocess 3d_fullres",
        "preprocess 3d_lowres",
    ]
    assert found["preprocess 3d_lowres"] == ("preprocess 3d_fullres",)
    assert found[f"train {CASCADE} fold 0"][0] == "preprocess 3d_fullres"


def test_a_graph_survives_json() -> None:
    made = graph(CASCADE, settings={"num_epochs": 3, "loss_kwargs": {"smooth": 0.1}})
    assert TaskGraph.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("name", ["select", "later"])
def test_a_graph_that_is_out_of_order_is_refused(name: str) -> None:
    run = graph(FULL).run
    with pytest.raises(ValidationError, match="needs 'later', which does not come before|occurs twice"):
        TaskGraph(run=run, tasks=(Task(name="select", verb="select"), Task(name=name, verb="select", needs=("later",))))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_tasks_run_after_those_that_they_need_and_finished_ones_do_not(pool: ThreadPoolExecutor) -> None:
    made = graph(LOW, CASCADE, folds=(0, 1))
    order: list[str] = []

    def run_task(run: RunSettings, task: Task) -> TaskResult:
        assert {*task.needs} <= {*order, finished}
        order.append(task.name)
        return TaskResult(name=task.name, is_new=True)

    finished = f"train {LOW} fold 1"
    results = run_graph(made, run_task, pool, finished=[finished])
    assert sorted(order) == sorted(each.name for each in made.tasks if each.name != finished)
    assert {each.name for each in results} == {*order}


def test_after_an_error_the_others_are_run_and_every_failed_task_is_named(pool: ThreadPoolExecutor) -> None:
    ran: list[str] = []

    def run_task(run: RunSettings, task: Task) -> TaskResult:
        ran.append(task.name)
        error = ("case 7: is damaged", "case 8: too") if task.name.endswith("fold 0") else ()
        return TaskResult(name=task.name, error=error, exit_code=int(bool(error)))

    with pytest.raises(TaskError) as caught:
        run_graph(graph(FULL, folds=(0, 1)), run_task, pool)
    assert "train 3d_fullres fold 1" in ran
    assert caught.value.lines() == (
        "train 3d_fullres fold 0: case 7: is damaged",
        "train 3d_fullres fold 0: case 8: too",
        "not started: select",
    )
    assert caught.value.exit_code == 1


def test_a_bug_in_a_task_is_raised_when_the_others_have_ended(pool: ThreadPoolExecutor) -> None:
    ended: list[str] = []

    def run_task(run: RunSettings, task: Task) -> TaskResult:
        if task.name.endswith("fold 0"):
            raise ZeroDivisionError
        ended.append(task.name)
        return TaskResult(name=task.name)

    with pytest.raises(ZeroDivisionError):
        run_graph(graph(FULL, folds=(0, 1)), run_task, pool)
    assert ended == ["preprocess 3d_fullres", "train 3d_fullres fold 1"]


def test_a_stop_reaches_running_tasks_through_a_file_and_starts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "POLL_S", 0.01)
    stop, reasons = StopRequest(), list[str]()
    file = tmp_path / "stop"

    def run_task(run: RunSettings, task: Task) -> TaskResult:
        if task.verb == "preprocess":
            return TaskResult(name=task.name)
        with stop_when_exists(run.stop_file) as requested:
            stop.request("SIGTERM")
            for _ in range(1000):
                if requested.reason:
                    break
                threading.Event().wait(0.01)
            reasons.append(requested.reason)
        return TaskResult(name=task.name, error=("stopped",), exit_code=EXIT_RESUMABLE)

    with ThreadPoolExecutor(1) as pool, pytest.raises(Interrupted, match="stopped by SIGTERM; .*run the same command"):
        run_graph(graph(FULL, folds=(0, 1), stop_file=file), run_task, pool, stop=stop)
    assert reasons == ["the run was stopped"]
    assert not file.exists()


def end_process(run: RunSettings, task: Task) -> TaskResult:
    os._exit(9)


def test_a_process_that_is_killed_names_its_task() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(TaskError) as caught:
        run_graph(graph(FULL), end_process, pool)
    assert str(caught.value).startswith("preprocess 3d_fullres: its process ended, perhaps killed or out of memory")
