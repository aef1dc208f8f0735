"""How far the tasks of a run are, as a table and as log lines, and when they will be done."""

from __future__ import annotations

import io
import logging
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from segwright.api.cluster import progress
from segwright.api.cluster.progress import Row, State, TaskProgress, estimate_left
from segwright.api.cluster.tasks import RunSettings, Task, TaskGraph, TaskResult
from segwright.core import log
from segwright.core.files.json_documents import write_json
from segwright.core.interrupt import EXIT_RESUMABLE
from segwright.training.monitoring.status import Status

CONFIGURATION = "3d_fullres"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def training(fold: int) -> Task:
    return Task(name=f"train fold {fold}", verb="train", configuration=CONFIGURATION, fold=fold)


def status(*, elapsed_s: float = 60.0, left_s: float | None = 40.0, epoch: int = 3) -> Status:
    return Status(
        state="training", epoch=epoch, num_epochs=5, epoch_step=0, steps_per_epoch=10, step=30, elapsed_s=elapsed_s,
        left_s=left_s, budget_s=None, train_loss=1.0, ema_fg_dice=0.5, host="node7", process=1, updated=time.time(),
    )  # fmt: skip


def row(fold: int, state: State, *, took_s: float | None = None, left_s: float | None = None) -> Row:
    record = None if left_s is None else status(left_s=left_s)
    return Row(task=training(fold), state=state, since=0.0, took_s=took_s, status=record)


@pytest.fixture
def graph(tmp_path: Path) -> TaskGraph:
    run = RunSettings(
        dataset=tmp_path / "Dataset001_Tiny", raw=tmp_path, preprocessed=tmp_path, results=tmp_path / "results",
        plans="nnUNetPlans", configurations=(CONFIGURATION,), folds=(0, 1), model_name="Trainer",
    )  # fmt: skip
    return TaskGraph(run=run, tasks=(training(0), training(1), Task(name="select", verb="select")))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(0, "running", left_s=40), row(1, "running", left_s=90)], 90),
        ([row(0, "running", left_s=40), row(1, "waiting")], 140),  # another 60 s + 40 s, one at a time
        ([row(0, "running", left_s=40), row(1, "running", left_s=40), row(2, "submitted")], 140),
        ([row(0, "done", took_s=30), row(1, "submitted"), row(2, "waiting")], 60),
        ([row(0, "running"), row(1, "waiting")], None),
        ([row(0, "running", left_s=40), row(1, "done"), row(2, "failed")], 40),
        ([row(0, "done", took_s=30)], None),
    ],
)
def test_trainings_that_have_not_begun_take_as_long_as_the_others(rows: list[Row], expected: float | None) -> None:
    assert estimate_left(rows) == expected


def test_off_a_terminal_a_line_says_when_a_task_starts_and_ends(
    graph: TaskGraph, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "segwright"):
        followed = TaskProgress(graph, ["train fold 1"], now=clock)
        with followed.shown():
            followed.submit("train fold 0")
            followed.update(["train fold 0"])
            clock.now += 75
            followed.update(["train fold 0"])
            followed.end(TaskResult(name="train fold 0", is_new=True))
            followed.submit("select")
            followed.end(TaskResult(name="select", error=("stopped",), exit_code=EXIT_RESUMABLE))
    assert caplog.messages == [
        "train fold 0: started",
        "train fold 0: done in 1 min 15 s; 2 of 3 tasks done",
        "select: stopped after 0 s",
    ]


def test_the_table_shows_how_far_a_training_is_and_ignores_the_status_of_an_earlier_run(graph: TaskGraph) -> None:
    file = graph.run.folder_of(training(0)) / "status.json"
    file.parent.mkdir(parents=True)
    write_json(file, status(epoch=1).model_dump())
    clock = Clock()
    followed = TaskProgress(graph, now=clock)
    followed.submit("train fold 0")

    def text() -> str:
        clock.now += progress.READ_EVERY_S
        followed.update(["train fold 0"])
        output = io.StringIO()
        Console(file=output, width=100).print(followed.table())
        return output.getvalue()

    assert "1 of 5" not in text()
    write_json(file, status(epoch=4).model_dump())
    found = text()
    assert "4 of 5" in found
    assert "0.500" in found
    assert "40 s" in found
    assert "0 of 3 tasks done, about 2 min 20 s of training left" in found
    file.write_text("{")
    assert "train fold 0   running" in text()


def test_on_a_terminal_log_lines_appear_above_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    handler = logging.StreamHandler(terminal)
    package = logging.getLogger("segwright")
    monkeypatch.setattr(package, "handlers", [handler])
    monkeypatch.setattr(package, "propagate", False)
    with log.live(lambda: "the table"):
        package.warning("a line")
    assert handler.stream is terminal
    assert terminal.getvalue().index("a line") < terminal.getvalue().rindex("the table")
