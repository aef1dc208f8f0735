"""Run a function of `rank_programs` in several processes that communicate over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def start(function: str, world_size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start `function(distributed, *arguments)` of `rank_programs`, one process for each rank."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.training.rank_programs", function, str(rank), str(world_size), str(port)]
            + [str(argument) for argument in arguments],
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def finish(processes: list[subprocess.Popen[str]], *, seconds: float = 100) -> list[tuple[int, str]]:
    """Return exit code and errors of each; nothing is left running."""
    try:
        ended = [(process, process.communicate(timeout=seconds)[1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, errors) for process, errors in ended]
