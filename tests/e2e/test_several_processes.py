"""`segwright train --gpus 2` and torchrun on the CPU with gloo; if one rank is killed, the other ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journeys import Journey, call, small_work

from segwright.core.interrupt import EXIT_RESUMABLE

SOURCE = Path(__file__).parents[2] / "src"
SETTINGS = ("--config", "3d_fullres", "--iterations", "2", "--batch-size", "3", "--device", "cpu")
SETTINGS += ("--set", "num_val_iterations_per_epoch=1")


@pytest.fixture(scope="module")
def work(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder for these tests; each trains a fold of its own."""
    return small_work(journey, tmp_path_factory.mktemp("several") / "work")


def model_in(work: Path, journey: Journey) -> Path:
    return work / "results" / journey.dataset.name / journey.model.name


def started(*command: object, path: Path = SOURCE) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE"}}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**kept, "PYTHONPATH": f"{SOURCE}:{path}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def rank_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((word.removeprefix("RANK=") for word in variables if word.startswith("RANK=")), "")


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and text in path.read_text():
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no '{text}' in {path}: {process.communicate()}")


def test_two_processes_train_and_validate_a_fold(journey: Journey, work: Path) -> None:
    process = started(
        *("-m", "segwright", "--work", work, "train", journey.dataset),
        *(*SETTINGS, "--fold", "1", "--epochs", "1", "--gpus", "2"),
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("model: ") == 1
    assert errors.count("2 processes train on the CPU, each on its part of the batch") == 1
    fold = model_in(work, journey) / "fold_1"
    assert (fold / "validation" / "summary.json").is_file()
    assert (fold / "training.log").read_text().count("training done") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["gpus", "torchrun"])
def test_a_killed_rank_ends_the_training_with_its_name(journey: Journey, work: Path, launcher: str) -> None:
    fold = {"gpus": "2", "torchrun": "3"}[launcher]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29877")
    process = started(
        *(torchrun if launcher == "torchrun" else ()),
        *("-m", "segwright", "--work", work, "train", journey.dataset, *SETTINGS, "--fold", fold),
        *("--epochs", "100000", *(("--gpus", "2") if launcher == "gpus" else ())),
    )
    wait_for(model_in(work, journey) / f"fold_{fold}" / "training.log", "epoch 1:", process)
    ranks = {rank_of(pid): pid for pid in children(process.pid)}
    start = time.monotonic()
    os.kill(ranks["1"], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode != 0
    assert ("rank 1 was killed by SIGKILL" if launcher == "gpus" else "Signal 9 (SIGKILL)") in errors
    assert not Path(f"/proc/{ranks['0']}").exists()


def test_the_traceback_of_a_failing_rank_is_shown(journey: Journey, tmp_path: Path) -> None:
    work = small_work(journey, tmp_path / "work")  # of its own: a model has one network
    (tmp_path / "mynets.py").write_text(
        "import os, torch\n\n\ndef build(inputs, outputs, **kwargs):\n"
        "    if os.environ['RANK'] == '1':\n        raise KeyError('lost weights')\n"
        "    return torch.nn.Conv3d(inputs, outputs, 1)\n"
    )
    process = started(
        *("-m", "segwright", "--work", work, "train", journey.dataset, *SETTINGS, "--fold", "4"),
        *("--epochs", "1", "--gpus", "2", "--network", "mynets:build"),
        path=tmp_path,
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "[rank 1] Traceback" in errors
    assert "lost weights" in errors


def test_more_gpus_than_there_are_is_an_error(journey: Journey, work: Path) -> None:
    result = call(
        *("--work", work, "train", journey.dataset, "--config", "3d_fullres", "--fold", "0"),
        *("--gpus", "2", "--device", "cuda:0"),
    )
    assert result.exit_code == 1
    assert "one GPU for 2 processes" in result.stderr


def test_processes_stop_together_and_resume(journey: Journey, work: Path) -> None:
    command = ("--work", work, "train", journey.dataset, *SETTINGS, "--fold", "0", "--gpus", "2")
    process = started("-m", "segwright", *command, "--epochs", "100000")
    fold = model_in(work, journey) / "fold_0"
    wait_for(fold / "training.log", "epoch 1:", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_RESUMABLE, errors
    assert errors.count("SIGTERM: saved after") == 1
    assert "Traceback" not in errors
    step = json.loads((fold / "checkpoint_latest.json").read_text())["step"]
    process = started("-m", "segwright", *command, "--epochs", "2", "--resume")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads((fold / "checkpoint_final.json").read_text())["step"] >= step > 0
