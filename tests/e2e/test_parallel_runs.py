"""Runs whose tasks run at once, in processes or on Dask: nothing is done twice; killed or stopped work continues."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from segwright.core.interrupt import EXIT_RESUMABLE

SOURCE = Path(__file__).parents[2] / "src"
EPOCHS = 6
CONFIGURATIONS = ("2d", "3d_fullres")
OPTIONS = ("--epochs", EPOCHS, "--iterations", 2, "--batch-size", 2, "--device", "cpu")
OPTIONS += ("--deterministic", "--workers", 1, "--set", "num_val_iterations_per_epoch=1", "--set", "save_every=1")
MINUTE = 60.0
MAX_S = 240.0
"""After this time a test fails; one task takes half a minute on a busy machine."""

pytestmark = pytest.mark.slow


def start(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tiny: Path, work: Path, *further: object) -> subprocess.Popen[str]:
    return start("segwright", "--work", work, "run", tiny, *OPTIONS, "--json", *further)


def whole_run(tiny: Path, work: Path, *further: object) -> subprocess.Popen[str]:
    """Start a run of two configurations and two folds that predicts six images with the selected model."""
    predicted = ("-i", tiny / "imagesTr", "-o", work / "predicted")
    return run(tiny, work, "--config", *CONFIGURATIONS, "--folds", "0,1", *predicted, *further)


def stages_of(process: subprocess.Popen[str]) -> list[str]:
    """Wait for a run; return what it did."""
    output, errors = process.communicate(timeout=MAX_S)
    assert process.returncode == 0, errors
    done: list[str] = json.loads(output)["done"]
    return done


def fold_in(work: Path, fold: int, configuration: str = "3d_fullres") -> Path:
    return work / "results" / "Dataset007_Tiny" / f"Trainer__nnUNetPlans__{configuration}" / f"fold_{fold}"


def results(work: Path) -> dict[str, object]:
    """Return weights and scores of two folds of each configuration, what was selected, and what it predicted."""
    found: dict[str, object] = {file.name: file.read_bytes() for file in (work / "predicted").glob("*.nii.gz")}
    for configuration, number in itertools.product(CONFIGURATIONS, (0, 1)):
        fold, name = fold_in(work, number, configuration), f"{configuration} fold {number}"
        weights = load_file(fold / "checkpoint_final.safetensors")
        found |= {f"{name}/{key}": tensor.numpy().tobytes() for key, tensor in weights.items()}
        found[name] = json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]
    selected = work / "results" / "Dataset007_Tiny" / "model" / "summary.json"
    return {**found, "selection": json.loads(selected.read_text())["foreground_mean"]}


def epochs_logged(work: Path, fold: int) -> list[int]:
    """Return the epochs in the log of a fold, in the order in which they were trained."""
    log = fold_in(work, fold) / "training.log"
    return [int(each) for each in re.findall(r": epoch (\d+): ", log.read_text())] if log.is_file() else []


def wait_until(is_true: Callable[[], bool], what: str, seconds: float = MAX_S) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def holder(work: Path, fold: int) -> int:
    """Return the process that trains a fold."""
    lock = fold_in(work, fold).with_name(f".fold_{fold}.lock")
    return int(json.loads(lock.read_text())["process"])


@pytest.fixture(scope="module")
def sequential(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("sequential")
    stages_of(whole_run(tiny, work))
    return work


def test_two_runs_started_at_once_do_nothing_twice_and_a_killed_process_keeps_none_waiting(
    tiny: Path, sequential: Path, tmp_path: Path
) -> None:
    both = [whole_run(tiny, tmp_path, "--local-cpus", 2) for _ in range(2)]
    done = [stage for process in both for stage in stages_of(process)]
    trainings = [f"train {name} fold {fold}" for name, fold in itertools.product(CONFIGURATIONS, (0, 1))]
    assert sorted(done) == [
        *("fingerprint", "plan", "predict part 0 of 2", "predict part 1 of 2"),
        *("preprocess 2d", "preprocess 3d_fullres", "select", *trainings),
    ]
    assert [epochs_logged(tmp_path, fold) for fold in (0, 1)] == [[*range(EPOCHS)]] * 2
    assert results(tmp_path) == results(sequential)

    more = ("--config", "3d_fullres", "--folds", "0,1,2", "--local-cpus", 2)
    both = [run(tiny, tmp_path, *more) for _ in range(2)]
    wait_until(lambda: len(epochs_logged(tmp_path, 2)) > 1, "two epochs of fold 2")
    os.kill(holder(tmp_path, 2), signal.SIGKILL)
    killed = len(epochs_logged(tmp_path, 2))
    wait_until(lambda: len(epochs_logged(tmp_path, 2)) > killed, "fold 2 goes on in the other run", MINUTE)
    errors = [process.communicate(timeout=MAX_S)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    [error] = [text for process, text in zip(both, errors, strict=True) if process.returncode]
    log = fold_in(tmp_path, 2) / "train_3d_fullres_fold_2.log"
    assert "error: train 3d_fullres fold 2: its process was killed by SIGKILL" in error
    assert f"error: train 3d_fullres fold 2: log: {log}" in error
    assert len(epochs_logged(tmp_path, 2)) <= EPOCHS + 1
    assert not [*tmp_path.rglob("*.lock"), *tmp_path.rglob("*.tmp.*")]


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Path]:
    """The file of a Dask scheduler with two workers, which are started again when they are killed."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip('needs Dask: pip install "segwright[cluster]"')
    file = tmp_path / "scheduler.json"
    options = ("--scheduler-file", file, "--no-dashboard")
    worker = ("worker", *options, "--nthreads", 1, "--memory-limit", 0, "--local-directory", tmp_path / "dask")
    processes = [start("dask", "scheduler", *options, "--host", "127.0.0.1", "--port", 0)]
    try:
        wait_until(file.is_file, "the scheduler's file")
        processes += [start("dask", *worker), start("dask", *worker)]
        yield file
    finally:
        for process in reversed(processes):
            process.terminate()
            process.communicate(timeout=MINUTE)


def test_a_run_on_dask_that_is_stopped_and_whose_worker_is_killed_twice_gives_the_same(
    tiny: Path, sequential: Path, tmp_path: Path, scheduler: Path
) -> None:
    work = tmp_path / "work"
    options = ("--parts", 3, "--dask", scheduler)
    stopped = whole_run(tiny, work, *options)
    wait_until(lambda: len(epochs_logged(work, 0)) > 0, "the first epoch of fold 0")
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=MAX_S)
    assert stopped.returncode == EXIT_RESUMABLE, errors
    assert "stopped by SIGTERM; finished work is kept" in errors
    assert not [*work.rglob("*.lock")], "both trainings have ended"

    continued = whole_run(tiny, work, *options)
    for _ in range(2):
        before = len(epochs_logged(work, 0))
        wait_until(lambda before=before: len(epochs_logged(work, 0)) > before, "one more epoch of fold 0")  # type: ignore[misc]
        os.kill(holder(work, 0), signal.SIGKILL)
    done = stages_of(continued)
    assert {f"predict part {part} of 3" for part in range(3)} < {*done}
    assert results(work) == results(sequential)
    trained = epochs_logged(work, 0)
    assert sorted({*trained}) == [*range(EPOCHS)]
    assert len(trained) <= EPOCHS + 2, "each loses at most what followed its last checkpoint, which every epoch writes"
