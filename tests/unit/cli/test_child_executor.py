"""Tasks in processes of their own, which a small program stands for here."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from segwright.api import run_task
from segwright.api.cluster.tasks import RunSettings, Task, TaskResult
from segwright.cli import launch
from segwright.cli.launch import ChildExecutor
from segwright.core.interrupt import EXIT_RESUMABLE
from segwright.core.parallel import available_cpus

TASK = Task(name="train 3d_fullres fold 0", verb="train", needs=("x",), configuration="3d_fullres", fold=0)

REPORT = """
import json, os, sys
graph = json.load(open(sys.argv[2]))
[task] = graph["tasks"]
assert sys.argv[1:2] + sys.argv[3:] == ["run-task", task["name"], "--json"] and not task["needs"]
print("a log line", file=sys.stderr)
names = ("OMP_NUM_THREADS", "SLOT")
print(json.dumps({"name": task["name"], "error": [str(os.environ.get(name)) for name in names], "exit_code": 1}))
sys.exit(1)
"""
WAIT = """
import json, os, signal, sys, time
def stop(number, frame):
    print(json.dumps({"name": "x", "error": ["saved"], "exit_code": 75}), flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os._exit(75) if not os.environ.get("STUBBORN") else None
signal.signal(signal.SIGTERM, stop)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunSettings:
    return RunSettings(
        dataset=tmp_path / "Dataset001_Tiny", raw=tmp_path, preprocessed=tmp_path / "preprocessed",
        results=tmp_path / "results", plans="nnUNetPlans", configurations=("3d_fullres",), folds=(0,),
        model_name="Trainer", stop_file=tmp_path / "stop",
    )  # fmt: skip


def submitted(
    executor: ChildExecutor, run: RunSettings, monkeypatch: pytest.MonkeyPatch, program: str, task: Task = TASK
) -> Future[TaskResult]:
    monkeypatch.setattr(launch, "SEGWRIGHT", program)
    return executor.submit(run_task, run, task)


def wait_for_log(run: RunSettings) -> None:
    for _ in range(1000):
        if run.log_of(TASK).is_file() and run.log_of(TASK).read_text():
            return
        threading.Event().wait(0.01)
    pytest.fail("the process did not start")


def test_a_task_runs_in_its_slot_with_its_share_of_the_cpus_and_names_its_log(
    run: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = run.results / "Dataset001_Tiny" / "Trainer__nnUNetPlans__3d_fullres/fold_0/train_3d_fullres_fold_0.log"
    with ChildExecutor([{"SLOT": "7"}] * 2) as executor:
        result = submitted(executor, run, monkeypatch, REPORT).result()
        assert result == TaskResult(
            name=TASK.name, error=(str(max(1, available_cpus() // 2)), "7", f"log: {log}"), exit_code=1
        )
        alone = TASK.model_copy(update={"verb": "preprocess"})
        assert submitted(executor, run, monkeypatch, REPORT, alone).result().error[0] == "None"
    assert log.read_text() == "a log line\n"


def test_a_process_that_is_killed_names_its_task_and_its_log(run: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChildExecutor([{}]) as executor:
        result = submitted(executor, run, monkeypatch, "import os; os.kill(os.getpid(), 9)").result()
        assert result.error == ("its process was killed by SIGKILL", f"log: {run.log_of(TASK)}")
        assert result.exit_code == 1
        bug = submitted(executor, run, monkeypatch, "raise SystemExit(2)").result()
        assert (bug.error[0], bug.exit_code) == ("its process failed with exit code 2", 2)


def test_the_stop_file_ends_a_process_in_order(run: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChildExecutor([{}]) as executor:
        future = submitted(executor, run, monkeypatch, WAIT)
        wait_for_log(run)
        assert run.stop_file is not None
        run.stop_file.touch()
        result = future.result(timeout=30)
    assert (result.error[0], result.exit_code) == ("saved", EXIT_RESUMABLE)


def test_the_end_of_the_executor_ends_its_processes_and_kills_those_that_stay(
    run: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "STOP_TIMEOUT_S", 0.5)
    with ChildExecutor([{"STUBBORN": "1"}]) as executor:
        future = submitted(executor, run, monkeypatch, WAIT)
        wait_for_log(run)
    assert future.result(timeout=0).exit_code == EXIT_RESUMABLE


def test_an_own_number_of_threads_wins(run: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with ChildExecutor([{}] * 2) as executor:
        assert submitted(executor, run, monkeypatch, REPORT).result().error[0] == "5"
    assert os.environ["OMP_NUM_THREADS"] == "5"
