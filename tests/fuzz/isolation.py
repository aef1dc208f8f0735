"""Feed damaged files to a reader in a child process, and report every way to end that is not an error of ours.

A target says how good files are made, how they are damaged and what reads them. Input number `index` of a target
depends on the seed alone, so that a finding is repeated with `python -m tests.fuzz show TARGET --seed S --index N`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.mutation import Mutator, mutate_bytes

TIME_LIMIT_S = 10.0
"""Of the processor; `PATIENCE` times as much may pass where other processes use it too, or one waits for nothing."""
PATIENCE = 6
START_LIMIT_S = 120.0
MAX_FINDINGS = 20
MAX_REPEATS = 2000
MEMORY_LIMIT = 2**30
"""Bytes above what the child has when its good files are read."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of files.

    Attributes:
        make: writes good files into an empty folder and returns those that are damaged, one at a time.
        read: reads the file at a path; the others lie good beside it.
        mutate: damages the content of a file.
        mutate_at: the same where it depends on the path.
    """

    make: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], object]
    mutate: Mutator = mutate_bytes
    mutate_at: Callable[[Path, bytes, Random], bytes] | None = None

    def damage(self, path: Path, content: bytes, rng: Random) -> bytes:
        """Return what a file holds instead of `content`."""
        return self.mutate(content, rng) if self.mutate_at is None else self.mutate_at(path, content, rng)


def several(targets: Mapping[str, Target]) -> Target:
    """Return targets as one, each in a folder of its name, so that they share a child process."""

    def target_of(path: Path) -> Target:
        return next(targets[folder.name] for folder in reversed(path.parents) if folder.name in targets)

    def make(folder: Path) -> list[Path]:
        files: list[Path] = []
        for name, target in targets.items():
            (folder / name).mkdir()
            files += target.make(folder / name)
        return files

    return Target(
        make=make,
        read=lambda path: target_of(path).read(path),
        mutate_at=lambda path, content, rng: target_of(path).damage(path, content, rng),
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that did not end in a value or an error of ours."""

    target: str
    seed: int
    index: int
    kind: str
    """foreign, memory, signal, hang or start."""
    text: str

    @property
    def cause(self) -> tuple[str, ...]:
        """What findings of one cause share: how they ended, the innermost place in code, the kind of error."""
        places = re.findall(
            r'^  File "[^"]+", line \d+ in .*|^  File "[^"]+", line \d+, in .*', self.text, re.MULTILINE
        )
        inner = places[:1] if self.kind in {"signal", "hang"} else places[-1:]
        return self.kind, *inner, (self.text.splitlines() or [""])[-1 if inner else 0].partition(":")[0]

    def __str__(self) -> str:
        again = f"python -m tests.fuzz show {self.target} --seed {self.seed} --index {self.index}"
        return f"{self.target}: {self.kind}: {self.text}\n  again: {again}"


@dataclass(slots=True)
class Outcome:
    """What a run found: inputs that were tried, those refused with an error of ours, and one finding of each cause."""

    tried: int = 0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)
    repeats: int = 0

    def add(self, finding: Finding) -> None:
        """Keep a finding of a new cause; count the others."""
        if finding.cause in {other.cause for other in self.findings}:
            self.repeats += 1
        else:
            self.findings.append(finding)


def generator(target: str, seed: int, index: int) -> Random:
    """Return the source of randomness of one input."""
    return Random(f"{target}:{seed}:{index}")


def fuzz(
    target: str,
    *,
    count: int,
    seed: int,
    first: int = 0,
    seconds: float | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> Outcome:
    """Try `count` damaged files on a target: "module:name" is an entry of the module's TARGETS, "module:*" all of them.

    Args:
        target: the reader.
        count: of inputs.
        seed: decides what the inputs are.
        first: number of the first input.
        seconds: ends the run early, as `MAX_FINDINGS` do.
        time_limit: seconds that an input may take.
    """
    outcome, last = Outcome(), first + count
    deadline = None if seconds is None else time.monotonic() + seconds
    while first < last and not _is_over(outcome, deadline):
        first = _run_child(target, seed, range(first, last), outcome, deadline, time_limit)
    return outcome


def _is_over(outcome: Outcome, deadline: float | None) -> bool:
    late = deadline is not None and time.monotonic() > deadline
    return late or len(outcome.findings) >= MAX_FINDINGS or outcome.repeats >= MAX_REPEATS


def _run_child(
    target: str, seed: int, indices: range, outcome: Outcome, deadline: float | None, time_limit: float
) -> int:
    """Run inputs in one child until it ends, dies or hangs; return the number of the next input."""
    receive, send = os.pipe()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fuzz.child",
                target,
                str(seed),
                str(indices.start),
                str(indices.stop),
                str(send),
            ],
            pass_fds=(send,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), **_ENVIRONMENT},
        )
        os.close(send)
        running, pending, finished, waited, cpu = -1, b"", False, 0.0, 0.0
        try:
            while True:
                limit = time_limit if running >= 0 else START_LIMIT_S
                ready, _, _ = select.select([receive], [], [], limit)
                waited = 0.0 if ready else waited + limit
                if not ready and waited < PATIENCE * limit and _cpu_seconds(child) - cpu < limit:
                    continue  # other processes have the processor
                if not ready:
                    child.send_signal(signal.SIGABRT)  # faulthandler writes where it is
                    text = f"no answer for {waited:.0f} s\n{_tail(log, child)}"
                    outcome.add(Finding(target, seed, running, "hang", text))
                    return max(running, indices.start) + 1
                cpu = _cpu_seconds(child)
                block = os.read(receive, 1 << 16)
                if not block:
                    break
                *lines, pending = (pending + block).split(b"\n")
                for line in lines:
                    running, finished = _take(line.decode(), outcome, target, seed, running, finished)
                if _is_over(outcome, deadline):
                    return indices.stop
        finally:
            os.close(receive)
            if not finished:
                child.kill()
            child.wait()
        if finished:
            return indices.stop
        kind = "signal" if child.returncode < 0 else "start"
        name = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit {child.returncode}"
        outcome.add(Finding(target, seed, running, kind, f"{name}\n{_tail(log, child)}"))
        return max(running, indices.start) + 1 if kind == "signal" and running >= 0 else indices.stop


def _take(line: str, outcome: Outcome, target: str, seed: int, running: int, finished: bool) -> tuple[int, bool]:
    """Note one message of the child; return the number of the input that runs, and whether all are done."""
    word, _, rest = line.partition(" ")
    if word == "begin":
        return int(rest), finished
    if word == "end":
        outcome.tried += 1
        outcome.refused += rest == "refused"
        return running, finished
    if word == "finding":
        kind, _, text = rest.partition(" ")
        outcome.add(Finding(target, seed, running, kind, text.replace("\\n", "\n")))
    return running, finished or word == "finished"


def _cpu_seconds(child: subprocess.Popen[bytes]) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _tail(log: object, child: subprocess.Popen[bytes]) -> str:
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    log.seek(0)  # type: ignore[attr-defined]
    return str(log.read()[-3000:].decode(errors="replace"))  # type: ignore[attr-defined]


_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
"""Threads reserve address space, which is what the memory limit of the child counts."""
