"""Start the processes of one training (`--gpus N`); the only module that starts processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Final

import typer

from segwright.cli.dist_env import device_of
from segwright.cli.signals import known_signals
from segwright.core.device import CPU
from segwright.core.interrupt import EXIT_RESUMABLE
from segwright.core.parallel import available_cpus
from segwright.training.distributed.heartbeat import EXIT_OTHER_ENDED, RankInfo

STOP_TIMEOUT_S: Final = 20.0
"""Seconds between SIGTERM and SIGKILL for the other processes when one has failed."""

SEGWRIGHT: Final = "from segwright.cli.main import main; main()"
"""Python source that runs the program."""

_POLL_S: Final = 0.1
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
    last = RankInfo(rank=count - 1, world_size=count, local_rank=count - 1, address="", port=0)
    if device_of(device, last) == CPU:
        reason = "" if device == CPU else "no GPU found: "
        typer.echo(f"{reason}{count} processes train on the CPU, each on its part of the batch", err=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = str(max(1, available_cpus() // count))
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}", *sys.argv[1:]]
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


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the rank that failed first, or None if all succeeded; forward stop signals."""
    is_stopping = False

    def forward(number: int, _: object) -> None:
        nonlocal is_stopping
        is_stopping = True
        for process in processes:
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
