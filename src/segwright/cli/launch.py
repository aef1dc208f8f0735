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

END_S: Final = 20.0
"""Seconds after which the other processes are killed when one has failed."""

_POLL_S: Final = 0.1
_SHOWN_BYTES: Final = 16_000


def start(count: int, device: str) -> None:
    """Run this command in `count` processes and wait for all; if one fails, show its output and stop the rest.

    The output of the first process is shown directly.

    Raises:
        ConfigError: there are fewer GPUs.
        typer.Exit: a process failed or all were stopped; has its exit code.
    """
    last = RankInfo(rank=count - 1, world_size=count, local_rank=count - 1, address="", port=0)
    if device_of(device, last) == CPU:
        why = "" if device == CPU else "no GPU is here: "
        typer.echo(f"{why}{count} processes train on the CPU, each on its part of the batch", err=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = str(max(1, available_cpus() // count))
    command = [sys.executable, "-c", _program(), *sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="segwright-ranks-") as folder:
        said = [open(os.path.join(folder, str(rank)), "w+b") for rank in range(1, count)]  # noqa: SIM115
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                own = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                log = said[rank - 1] if rank else None
                processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
            failed = _wait(processes)
            if failed is not None:
                _end(processes)
                if failed:
                    _show(said[failed - 1], failed)
                code = processes[failed].returncode
                if code == EXIT_RESUMABLE:
                    raise typer.Exit(code)
                typer.echo(f"error: rank {failed} {_how(code)}; the other processes were stopped", err=True)
                raise typer.Exit(code if code > 0 else 128 - code)
        finally:
            _end(processes)
            for log in said:
                log.close()


def _program() -> str:
    """Return the program of a process: Segwright with this process's search path, without the current folder."""
    return f"import sys; sys.path[:] = {sys.path!r}; from segwright.cli.main import main; main()"


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the rank that failed first, or None if all succeeded; forward stop signals."""
    asked_to_stop = False

    def pass_on(number: int, _: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in known_signals()}
    try:
        while True:
            codes = [process.poll() for process in processes]
            broken = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            causes = [rank for rank in broken if codes[rank] != EXIT_OTHER_ENDED]
            if (causes and not asked_to_stop) or (broken and None not in codes):
                return (causes or broken)[0]
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop running processes, first with SIGTERM."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _show(log: IO[bytes], rank: int) -> None:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(size - _SHOWN_BYTES, 0))
    for line in log.read().decode(errors="replace").splitlines():
        typer.echo(f"[rank {rank}] {line}", err=True)


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
