"""Run commands of both systems in alternation; measure wall time and memory of the process tree."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

MEMORY_POLL_S = 0.1
GROWTH, PSS_SHARE = 1.01, 0.02
"""Proportional set sizes are read if the resident sizes have grown by `GROWTH`, otherwise in at most `PSS_SHARE` of the
time: to compute them, the system walks all pages of a process on the processor that is measured."""
CPU_FLAGS_OF_INTEREST = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One side of a comparison; a JSON object with `seconds` as its last line of output replaces its wall time."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Sequence[str] = ()
    """Command to run first without measuring, for example to empty a folder."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Time and memory of one run of a command."""

    seconds: float
    peak_mib: float
    extra: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Samples of both systems for one stage."""

    stage: str
    target: str
    ours: tuple[Sample, ...]
    theirs: tuple[Sample, ...]

    @property
    def ratio(self) -> float | None:
        """Median time of nnU-Net divided by ours; above 1 if ours is faster."""
        if not self.theirs:
            return None
        return median(sample.seconds for sample in self.theirs) / median(sample.seconds for sample in self.ours)

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable summary with all samples."""
        sides = {"ours": self.ours, "nnunet": self.theirs}
        return {
            "stage": self.stage,
            "target": self.target,
            "ratio": self.ratio,
            **{
                name: {
                    "median_s": median(sample.seconds for sample in samples),
                    "peak_mib": max(sample.peak_mib for sample in samples),
                    "samples": [asdict(sample) for sample in samples],
                }
                for name, samples in sides.items()
                if samples
            },
        }


def compare(stage: str, target: str, ours: Command, theirs: Command | None, *, rounds: int) -> Comparison:
    """Run both commands `rounds` times in alternation, so that other work on the machine affects both."""
    samples: dict[str, list[Sample]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        for side, command in (("ours", ours), ("theirs", theirs)):
            if command is None:
                continue
            sample = measure(command)
            samples[side].append(sample)
            print(f"{stage} round {number + 1} {side}: {sample.seconds:.3f} s", file=sys.stderr)
    return Comparison(stage=stage, target=target, ours=tuple(samples["ours"]), theirs=tuple(samples["theirs"]))


def measure(command: Command) -> Sample:
    """Run one command and measure it.

    Raises:
        RuntimeError: The command failed; the message contains the end of its output.
    """
    environment = {**os.environ, **command.environment}
    if command.before:
        subprocess.run(command.before, check=True, env=environment)
    start = time.perf_counter()
    process = subprocess.Popen(
        command.arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    monitor = MemoryMonitor(process.pid)
    monitor.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - start
    monitor.stop()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command.arguments)} failed:\n{output[-1000:]}\n{errors[-3000:]}")
    result = last_json(output)
    measured = result.pop("seconds", seconds)
    assert isinstance(measured, int | float)
    return Sample(seconds=float(measured), peak_mib=monitor.peak_mib, extra=result)


def last_json(output: str) -> dict[str, object]:
    """Return the JSON object in the last line of a program's output; empty without one."""
    last = (output.strip().splitlines() or [""])[-1]
    if not last.startswith('{"'):
        return {}
    result: dict[str, object] = json.loads(last)
    return result


class MemoryMonitor(threading.Thread):
    """Measure the peak proportional set size of a process and its descendants (shared pages counted once)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_mib = 0.0
        self._done = threading.Event()

    def run(self) -> None:
        """Poll until `stop` is called."""
        highest, again_at = 0.0, 0.0
        while not self._done.wait(MEMORY_POLL_S):
            tree, start = _tree(self.pid), time.perf_counter()
            resident = sum(map(_resident_kib, tree))
            if resident > GROWTH * highest or start > again_at:
                highest = max(highest, resident)
                self.peak_mib = max(self.peak_mib, sum(map(_pss_kib, tree)) / 1024)
                now = time.perf_counter()
                again_at = now + (now - start) / PSS_SHARE

    def stop(self) -> None:
        """Stop polling."""
        self._done.set()
        self.join()


def machine() -> dict[str, object]:
    """Describe the machine: CPU, flags, versions; no host names."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cpu_flags": [flag for flag in CPU_FLAGS_OF_INTEREST if flag in flags],
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("segwright", "torch", "numpy", "scipy", "blosc2")},
    }


def _tree(pid: int) -> list[int]:
    processes, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        processes.append(current)
        try:
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue
    return processes


def _resident_kib(pid: int) -> int:
    return _proc_kib(pid, "status", "VmRSS:")


def _pss_kib(pid: int) -> int:
    return _proc_kib(pid, "smaps_rollup", "Pss:")


def _proc_kib(pid: int, file: str, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
