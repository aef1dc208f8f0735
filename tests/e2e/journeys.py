"""Helpers that call the program and record changed files and started processes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from segwright.cli.main import app

RUN = ("--config", "3d_fullres", "--folds", "0", "--budget", "3s", "--device", "cpu")

_STARTS_A_CHILD = frozenset(
    {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "subprocess.Popen", "os.system"}
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shrink(plans: Path, width: int = 6) -> None:
    """Reduce the networks of a plan to `width` features in the first stage, for tests that do not need quality."""
    document = json.loads(plans.read_text())
    for configuration in document["configurations"].values():
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [width * 2**stage for stage in range(kwargs["n_stages"])]
    plans.write_text(json.dumps(document))


def small_work(journey: Journey, folder: Path) -> Path:
    """Copy the preprocessed data of the run to `folder`, with plans of small networks; return `folder`."""
    shutil.copytree(journey.work / "preprocessed", folder / "preprocessed")
    shrink(folder / "preprocessed" / journey.dataset.name / "nnUNetPlans.json")
    return folder


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Journey:
    """A finished `segwright run`, with its output and the processes it started."""

    dataset: Path
    work: Path
    result: Result
    children: tuple[str, ...]
    raw_before: dict[str, tuple[int, int]]

    @property
    def preprocessed(self) -> Path:
        return self.work / "preprocessed" / self.dataset.name

    @property
    def model(self) -> Path:
        return self.work / "results" / self.dataset.name / "Trainer__nnUNetPlans__3d_fullres"


@contextmanager
def watching_children() -> Iterator[list[str]]:
    """Collect audit events of started processes; the audit hook is only disabled, as it cannot be removed."""
    seen: list[str] = []
    active = [True]

    def hook(event: str, _: object) -> None:
        if active[0] and event in _STARTS_A_CHILD:
            seen.append(event)

    sys.addaudithook(hook)
    try:
        yield seen
    finally:
        active[0] = False
