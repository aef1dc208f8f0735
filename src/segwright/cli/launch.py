"""Start the processes of one training (`--gpus N`) or of the tasks of a run, and commands of schedulers.

The only module that starts processes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Event
from typing import IO, Any, Final

import typer
from pydantic import ValidationError

from segwright.api.cluster.tasks import Settings, Task, TaskResult, graph_of_one
from segwright.cli.dist_env import device_of
from segwright.cli.signals import known_signals
from segwright.core.interrupt import EXIT_RESUMABLE
from segwright.core.parallel import available_cpus

STOP_TIMEOUT_S: Final = 20.0
"""Seconds between SIGTERM and SIGKILL for the other processes when one has failed."""

SEGWRIGHT: Final = "from segwright.cli.main import main; main()"
"""Python source that runs the program."""

_THREADS: Final = "OMP_NUM_THREADS"
_SHARING: Final = ("train", "predict")
"""Verbs of tasks that run at once and share the CPUs."""

_TERMINATED: Final = 1 if sys.platform == "win32" else -signal.SIGTERM
"""Exit code of a process that `terminate` ended."""
_STOPPED: Final = (EXIT_RESUMABLE, _TERMINATED, -getattr(signal, "SIGKILL", signal.SIGTERM))

_POLL_S: Final = 0.1
_CHILD_POLL_S: Final = 0.2
_SHOWN_BYTES: Final = 16_000
"""Of the output of a failed process, from its end."""


def start(count: int, device: str, *, program: str = SEGWRIGHT) -> None:
    """Run this command in `count` processes and wait for all; if one fails, show its output and stop the rest.

    The output of the first process is shown directly.

    Args:
        count: number of processes.
        device: of the training.
        program: Python source that runs the command with the arguments of this process.

    Raises:
        ConfigError: there are fewer than `count` GPUs.
        typer.Exit: a process failed or all were stopped; the exit code is that of the first failed process.
    """
    from segwright.core.device import CPU  # imports torch, which commands of schedulers do not need
    from segwright.training.distributed.heartbeat import RankInfo

    last = RankInfo(rank=count - 1, world_size=count, local_rank=count - 1, address="", port=0)
    if device_of(device, last) == CPU:
        reason = "" if device == CPU else "no GPU found: "
        typer.echo(f"{reason}{count} processes train on the CPU, each on its part of the batch", err=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= _threads_of_one(count)
    command = _command(program, *sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="segwright-ranks-") as folder:
        outputs = [open(os.path.join(folder, str(rank)), "w+b") for rank in range(1, count)]  # noqa: SIM115
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                output = outputs[rank - 1] if rank else None
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            failed = _wait(processes)
            if failed is not None:
                _stop(processes)
                if failed:
                    _show_output(outputs[failed - 1], failed)
                code = processes[failed].returncode
                if code == EXIT_RESUMABLE:
                    raise typer.Exit(code)
                typer.echo(f"error: rank {failed} {_describe_exit(code)}; the other processes were stopped", err=True)
                raise typer.Exit(code if code > 0 else 128 - code)
        finally:
            _stop(processes)
            for output in outputs:
                output.close()


class ChildExecutor(Executor):
    """Runs each task of a run in a `segwright` process of its own, whose log goes into the folder of the task.

    When a run is stopped, its processes get SIGTERM: trainings save and end, everything else ends at once.

    Args:
        slots: Environment variables of the processes; as many tasks run at once.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]]) -> None:
        self._free: Queue[Mapping[str, str]] = Queue()
        for slot in slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(len(slots), "segwright-child")
        self._share = _threads_of_one(len(slots))
        self._ending = Event()
        self.size: Final = len(slots)
        """Number of tasks that run at once."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task, as `run_graph` does.

        Args:
            function: `api.run_task`, which the command `run-task` calls.
            args: settings of the graph, and the task.
            kwargs: none.
        """
        run, task = args
        return self._threads.submit(self._run, run, task)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End running processes at once, and wait for them."""
        self._ending.set()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, run: Settings, task: Task) -> TaskResult:
        slot = self._free.get()
        try:
            return self._run_child(run, task, {**slot, **(self._share if task.verb in _SHARING else {})})
        finally:
            self._free.put(slot)

    def _run_child(self, run: Settings, task: Task, variables: Mapping[str, str]) -> TaskResult:
        log = run.log_of(task)
        log.parent.mkdir(parents=True, exist_ok=True)
        trust = ["--trust-code"] if run.names_code else []  # this command was told to
        with tempfile.TemporaryDirectory(prefix="segwright-task-") as folder, open(log, "ab") as errors:
            file, answer = Path(folder, "graph.json"), Path(folder, "result.json")
            file.write_text(graph_of_one(run, task).model_dump_json(), encoding="utf-8")
            with answer.open("wb") as output:
                process = subprocess.Popen(
                    _command(SEGWRIGHT, "run-task", str(file), task.name, "--json", *trust),
                    env={**os.environ, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    start_new_session=True,  # or Ctrl-C would reach it as well as SIGTERM, as if sent again
                )
                is_stopped = self._wait_or_stop(process, run.stop_file)
            return _result(task, process.returncode, answer.read_bytes(), log, is_stopped=is_stopped)

    def _wait_or_stop(self, process: subprocess.Popen[bytes], stop_file: Path | None) -> bool:
        """Wait for a process; return whether it was told to stop."""
        is_stopped = False
        while True:
            try:
                process.wait(_CHILD_POLL_S)
                return is_stopped
            except subprocess.TimeoutExpired:
                if self._ending.is_set():
                    _stop([process])
                    is_stopped = True
                elif not is_stopped and stop_file is not None and stop_file.exists():
                    process.terminate()
                    is_stopped = True


def _result(task: Task, code: int, answer: bytes, log: Path, *, is_stopped: bool) -> TaskResult:
    """Return what a process reported of its task, or how it ended, and where its log is."""
    try:
        result = TaskResult.model_validate_json(answer)
    except ValidationError:
        stopped = is_stopped and code in _STOPPED
        reason = "stopped before it had begun" if stopped else f"its process {_describe_exit(code)}"
        exit_code = EXIT_RESUMABLE if stopped else max(code, 1)
        result = TaskResult(name=task.name, error=(reason,), exit_code=exit_code)
    if result.error:
        result = result.model_copy(update={"error": (*result.error, f"log: {log}")})
    return result


def _threads_of_one(count: int) -> dict[str, str]:
    """Return the variable that divides the CPUs among processes; a user's own wins."""
    return {} if _THREADS in os.environ else {_THREADS: str(max(1, available_cpus() // count))}


def _command(program: str, *arguments: str) -> list[str]:
    """Return the command line of a process that imports from where this one does."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}", *arguments]


def run_command(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of a scheduler such as SLURM, wait for it, and return its exit code and output.

    Raises:
        FileNotFoundError: there is no such program.
    """
    return subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the rank that failed first, or None if all succeeded; forward stop signals."""
    from segwright.training.distributed.heartbeat import EXIT_OTHER_ENDED

    is_stopping = False

    def forward(number: int, _: object) -> None:
        nonlocal is_stopping
        is_stopping = True
        for process in processes:
            with suppress(ValueError):  # Windows, where Ctrl-C reaches all processes of the console by itself
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in known_signals()}
    try:
        while True:
            codes = [process.poll() for process in processes]
            broken = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            causes = [rank for rank in broken if codes[rank] != EXIT_OTHER_ENDED]
            if (causes and not is_stopping) or (broken and None not in codes):
                return (causes or broken)[0]
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop running processes, first with SIGTERM."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _show_output(log: IO[bytes], rank: int) -> None:
    """Print the end of a process's output to stderr."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(size - _SHOWN_BYTES, 0))
    for line in log.read().decode(errors="replace").splitlines():
        typer.echo(f"[rank {rank}] {line}", err=True)


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
