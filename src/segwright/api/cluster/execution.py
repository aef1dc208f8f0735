"""Run a graph of tasks on any `concurrent.futures.Executor`: each task when those that it needs are finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Final

from segwright.api.cluster.progress import TaskProgress
from segwright.api.cluster.tasks import AnyGraph, Settings, Task, TaskResult
from segwright.core.errors import SegwrightError
from segwright.core.interrupt import EXIT_RESUMABLE, Interrupted, StopRequest

POLL_S: Final = 0.5
"""Between two looks at a stop request or a stop file."""

RunTask = Callable[[Settings, Task], TaskResult]
"""A function that a module defines, so that other processes can import it."""


class TaskError(SegwrightError):
    """Tasks failed; each line names one."""

    def __init__(self, failed: Sequence[TaskResult], skipped: Sequence[str]) -> None:
        self.failed = tuple(failed)
        self.skipped = tuple(skipped)
        self.exit_code = next((each.exit_code for each in failed if each.exit_code != EXIT_RESUMABLE), EXIT_RESUMABLE)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> tuple[str, ...]:
        """Return each line of the tasks' errors, and the names of the tasks that could not be started."""
        lines = [f"{each.name}: {line}" for each in self.failed for line in each.error]
        return (*lines, *([f"not started: {', '.join(self.skipped)}"] if self.skipped else ()))


def run_graph(
    graph: AnyGraph,
    run_task: RunTask,
    executor: Executor,
    *,
    finished: Collection[str] = (),
    stop: StopRequest | None = None,
) -> list[TaskResult]:
    """Run the tasks of a graph; return their results in the order in which they ended.

    After an error, tasks that do not need the failed one are still run. On a stop request or Ctrl-C no more tasks are
    started, and trainings that run save and end.

    Args:
        graph: the tasks.
        run_task: runs one of them.
        executor: where; it is not shut down.
        finished: names of tasks that need not run.
        stop: request to stop.

    Raises:
        Interrupted: a stop was requested; the same call continues.
        TaskError: tasks failed.
    """
    run = _GraphRun(graph, run_task, executor, finished, stop or StopRequest())
    with run.stop.watched():
        try:
            run.complete()
        finally:
            if graph.run.stop_file is not None:
                graph.run.stop_file.unlink(missing_ok=True)
    if run.unexpected is not None:
        raise run.unexpected
    if run.stop.reason:
        raise Interrupted(
            f"stopped by {run.stop.reason}; finished work is kept, run the same command again to continue"
        )
    failed = [result for result in run.results if result.error]
    if failed:
        raise TaskError(failed, list(run.todo))
    return run.results


class _GraphRun:
    """The state of a graph that is being run."""

    def __init__(
        self, graph: AnyGraph, run_task: RunTask, executor: Executor, finished: Collection[str], stop: StopRequest
    ) -> None:
        self._graph = graph
        self._run_task = run_task
        self._executor = executor
        self._done = set(finished)
        self._running: dict[Future[TaskResult], Task] = {}
        self._progress = TaskProgress(graph, finished)
        self.stop = stop
        self.todo = {task.name: task for task in graph.tasks if task.name not in self._done}
        self.results: list[TaskResult] = []
        self.unexpected: Exception | None = None

    def complete(self) -> None:
        """Run all tasks that can be run, and show them."""
        with self._progress.shown():
            self._complete()

    def _complete(self) -> None:
        self._submit_ready()
        while self._running:
            try:
                ended, _ = wait(self._running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                if self.stop.reason:
                    raise
                self.stop.request("Ctrl-C")
                continue
            for future in ended:
                self._collect(future, self._running.pop(future))
            if self.stop.reason:
                self._end_running()
            else:
                self._submit_ready()
            self._progress.update(task.name for future, task in self._running.items() if future.running())

    def _submit_ready(self) -> None:
        for task in [each for each in self.todo.values() if self._done.issuperset(each.needs)]:
            del self.todo[task.name]
            self._progress.submit(task.name)
            try:
                future = self._executor.submit(self._run_task, self._graph.run, task)
            except BrokenExecutor as error:
                self._add(_lost(task, error))
            else:
                self._running[future] = task

    def _collect(self, future: Future[TaskResult], task: Task) -> None:
        try:
            self._add(future.result())
        except BrokenExecutor as error:
            self._add(_lost(task, error))
        except Exception as error:  # a bug: raised when the other tasks have ended
            self._progress.end(TaskResult(name=task.name, error=(repr(error),)))
            self.unexpected = self.unexpected or error

    def _add(self, result: TaskResult) -> None:
        self.results.append(result)
        self._progress.end(result)
        if not result.error:
            self._done.add(result.name)

    def _end_running(self) -> None:
        """Cancel tasks that have not begun, and ask the others to end."""
        if self._graph.run.stop_file is not None:
            self._graph.run.stop_file.touch()
        self._running = {future: task for future, task in self._running.items() if not future.cancel()}


def _lost(task: Task, error: BrokenExecutor) -> TaskResult:
    reason = f"its process ended, perhaps killed or out of memory ({error}); the same command continues the work"
    return TaskResult(name=task.name, error=(reason,), exit_code=SegwrightError.exit_code)


@contextmanager
def stop_when_exists(file: Path | None, stop: StopRequest | None = None) -> Iterator[StopRequest]:
    """Yield a stop request that is made when a file exists: so a run stops its tasks in other processes.

    Args:
        file: the file; None if there is no such file.
        stop: the request, which others may make too; by default a new one.

    Raises:
        Interrupted: the file exists already.
    """
    if file is not None and file.exists():
        raise Interrupted("the run was stopped before this task began")
    request, ended = stop or StopRequest(), Event()

    def look() -> None:
        while file is not None and not ended.wait(POLL_S):
            if file.exists():
                request.request("the run was stopped")
                return

    thread = Thread(target=look, name="segwright-stop-file", daemon=True)
    thread.start()
    try:
        yield request
    finally:
        ended.set()
        thread.join()
