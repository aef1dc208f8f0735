"""Show the tasks of a run: one table on a terminal, elsewhere a log line when a task starts or ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from heapq import heapreplace
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from segwright.api.cluster.tasks import AnyGraph, Task, TaskResult
from segwright.core.errors import SegwrightError
from segwright.core.files.json_documents import parse_document
from segwright.core.interrupt import EXIT_RESUMABLE
from segwright.core.log import is_live, live
from segwright.core.text import printable
from segwright.training.monitoring.logbook import duration_text
from segwright.training.monitoring.status import STATUS_JSON, Status

if TYPE_CHECKING:
    from rich.table import Table

logger = getLogger(__name__)

READ_EVERY_S: Final = 2.0
"""Between two readings of the status of trainings."""

State = Literal["waiting", "submitted", "running", "done", "stopped", "failed"]


@dataclass(slots=True, kw_only=True)
class Row:
    """What is known of one task.

    Attributes:
        task: The task.
        state: waiting for others, submitted to the executor, or what became of it.
        since: time at which the state began, in seconds of the clock.
        took_s: seconds from start to end; None if it did not run or was finished before.
        status: the last status of its training that is not that of an earlier run.
    """

    task: Task
    state: State
    since: float
    took_s: float | None = None
    status: Status | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds until the training ends, as it estimates them."""
        return self.status.left_s if self.state == "running" and self.status is not None else None


class TaskProgress:
    """Follows the tasks of a run.

    Args:
        graph: the tasks.
        finished: names of tasks that need not run.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self, graph: AnyGraph, finished: Collection[str] = (), *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        start = now()
        self.rows = {
            task.name: Row(task=task, state="done" if task.name in finished else "waiting", since=start)
            for task in graph.tasks
        }
        trainings = [task for task in graph.tasks if task.verb == "train"]
        self._files = {task.name: graph.run.folder_of(task) / STATUS_JSON for task in trainings}
        self._earlier = {name: _read(file) for name, file in self._files.items()}
        self._read_at = start
        self._is_live = is_live()

    def shown(self) -> AbstractContextManager[None]:
        """Return a context manager during which the table is shown, if stderr is a terminal."""
        return live(self.table) if self._is_live else nullcontext()

    def submit(self, name: str) -> None:
        """Note that a task was given to the executor."""
        self._change(name, "submitted")

    def update(self, running: Iterable[str]) -> None:
        """Note which tasks have begun, and read how far the trainings are."""
        for name in running:
            if self.rows[name].state == "submitted":
                self._change(name, "running")
                self._log("%s: started", name)
        if self._now() - self._read_at >= READ_EVERY_S:
            self._read_at = self._now()
            for name, file in self._files.items():
                if self.rows[name].state == "running":
                    status = _read(file)
                    self.rows[name].status = None if status == self._earlier[name] else status

    def end(self, result: TaskResult) -> None:
        """Note how a task ended."""
        row = self.rows[result.name]
        seconds = result.seconds or self._now() - row.since
        if result.error:
            is_stopped = result.exit_code == EXIT_RESUMABLE
            self._change(result.name, "stopped" if is_stopped else "failed")
            if is_stopped:
                self._log("%s: stopped after %s", result.name, duration_text(seconds))
            else:
                logger.warning("%s: failed after %s", result.name, duration_text(seconds))
            return
        self._change(result.name, "done")
        row.took_s = seconds if result.is_new else None
        how = f"done in {duration_text(seconds)}" if result.is_new else "was done before"
        self._log("%s: %s; %s", result.name, how, self.summary())

    def summary(self) -> str:
        """Return in words how many tasks are done, and how long the trainings still take."""
        done = sum(row.state == "done" for row in self.rows.values())
        left_s = estimate_left([row for row in self.rows.values() if row.task.verb == "train"])
        left = f", about {duration_text(left_s)} of training left" if left_s else ""
        return f"{done} of {len(self.rows)} tasks done{left}"

    def table(self) -> Table:
        """Return a table with a row for each task."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=self.summary(), caption_justify="left")
        for index, name in enumerate(("task", "state", "time", "epoch", "pseudo Dice", "time left")):
            table.add_column(name, justify="left" if index < 2 else "right")
        for name, row in self.rows.items():
            seconds = self._now() - row.since if row.state == "running" else row.took_s
            spent = "" if seconds is None else duration_text(seconds)
            table.add_row(Text(printable(name)), row.state, spent, *_training_cells(row))
        return table

    def _change(self, name: str, state: State) -> None:
        self.rows[name].state, self.rows[name].since = state, self._now()

    def _log(self, message: str, *values: str) -> None:
        if not self._is_live:
            logger.info(message, *values)


def estimate_left(trainings: Collection[Row]) -> float | None:
    """Return the seconds until all trainings have ended; None if nothing is known of one, or none is left.

    A training that has not begun takes as long as the mean of the others of its configuration, and begins when one of
    those that run now ends.
    """
    unfinished = [row for row in trainings if row.state in ("waiting", "submitted", "running")]
    left = [(row.state == "running", _expected_left(row, trainings)) for row in unfinished]
    known = [(is_running, seconds) for is_running, seconds in left if seconds is not None]
    if not left or len(known) < len(left):
        return None
    ends = sorted(seconds for is_running, seconds in known if is_running) or [0.0]
    for seconds in (seconds for is_running, seconds in known if not is_running):
        heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _expected_left(row: Row, trainings: Collection[Row]) -> float | None:
    if row.left_s is not None:
        return row.left_s
    others = [_duration(other) for other in trainings if other.task.configuration == row.task.configuration]
    known = [seconds for seconds in others if seconds is not None]
    return sum(known) / len(known) if known else None


def _duration(row: Row) -> float | None:
    """Return the seconds that a training takes as a whole."""
    if row.status is not None and row.status.left_s is not None:
        return row.status.elapsed_s + (row.left_s or 0.0)
    return row.took_s


def _training_cells(row: Row) -> tuple[str, str, str]:
    """Return epoch, pseudo Dice and time left of a training; empty for other tasks."""
    status = row.status
    if status is None:
        return "", "", ""
    epoch = f"{status.epoch} of {status.num_epochs}" if status.num_epochs else str(status.epoch)
    dice = "" if status.ema_fg_dice is None else f"{status.ema_fg_dice:.3f}"
    return epoch, dice, "" if row.left_s is None else duration_text(row.left_s)


def _read(file: Path) -> Status | None:
    """Return the status of a training; None if there is none, or if it is not readable for now."""
    try:
        return parse_document(Status, file) if file.is_file() else None
    except (SegwrightError, OSError):
        return None
