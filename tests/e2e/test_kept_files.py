"""Kills and nearly full disks during a run: the same results or a clear error, never another model.

`SEGWRIGHT_TRIALS=50` interrupts as often with each, two times a run; one run of each is tried by default.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from segwright.data.phantom import write_dataset

pytestmark = pytest.mark.slow

RUNS = max(int(os.environ.get("SEGWRIGHT_TRIALS", "2")) // 2, 1)
SOURCE = Path(__file__).parents[2] / "src"
SHORT = [
    "--config",
    "3d_fullres",
    "--folds",
    "0",
    "--epochs",
    "3",
    "--device",
    "cpu",
    "--set",
    "deterministic=true",
    "--set",
    "num_iterations_per_epoch=2",
    "--set",
    "num_val_iterations_per_epoch=1",
    "--set",
    "batch_size=2",
    "--set",
    "save_every=1",
    "--set",
    "precision=fp32",
]


def start(work: Path, raw: Path, *, largest_file: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        import resource

        assert largest_file is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "segwright", "--work", str(work), "run", str(raw), *SHORT]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit if largest_file is not None else None,
    )


def finish(work: Path, raw: Path, *, largest_file: int | None = None) -> tuple[int, str]:
    process = start(work, raw, largest_file=largest_file)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def result(work: Path) -> dict[str, object]:
    """Return the results of a run: weights and predicted label maps of the validation."""
    fold = next(work.rglob("fold_0"))
    weights = load_file(fold / "checkpoint_final.safetensors")
    predicted = {path.name: path.read_bytes() for path in sorted((fold / "validation").glob("*.nii.gz"))}
    return {**{name: tensor.numpy().tobytes() for name, tensor in weights.items()}, **predicted}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset007_Tiny"
    write_dataset(folder, num_training=6, num_test=0, edge=16)
    return folder


@pytest.fixture(scope="module")
def done(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A work folder with an undisturbed run, and how many seconds it took."""
    work, began = tmp_path_factory.mktemp("whole") / "work", time.monotonic()
    code, said = finish(work, raw)
    assert code == 0, said
    return work, time.monotonic() - began


@cache
def expected(work: Path) -> dict[str, object]:
    return result(work)


@pytest.mark.parametrize("trial", range(RUNS))
def test_a_run_that_is_killed_twice_ends_in_the_same_model(
    raw: Path, done: tuple[Path, float], tmp_path: Path, trial: int
) -> None:
    whole, seconds = done
    waits = np.random.default_rng(trial).uniform(0.05, 0.95, 2) * seconds
    for wait in waits:
        process = start(tmp_path / "work", raw)
        try:
            process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    code, said = finish(tmp_path / "work", raw)
    assert code == 0, f"killed after {waits} s\n{said}"
    assert result(tmp_path / "work") == expected(whole)
    assert not list((tmp_path / "work" / "results").rglob(".*.tmp.*"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("trial", range(RUNS))
def test_files_that_the_disk_refuses_are_told_and_the_run_can_go_on(
    raw: Path, done: tuple[Path, float], tmp_path: Path, trial: int
) -> None:
    sizes = sorted(int(10**exponent) for exponent in np.random.default_rng(trial).uniform(2.5, 7.5, 2))
    for size in sizes:  # the second run gets further than the first
        code, said = finish(tmp_path / "work", raw, largest_file=size)
        assert code in (0, 1), f"{size} bytes\n{said}"
        assert "Traceback" not in said
        if code == 1:
            assert "larger than the system lets" in said, f"{size} bytes\n{said}"
    code, said = finish(tmp_path / "work", raw)
    assert code == 0, said
    assert result(tmp_path / "work") == expected(done[0])
