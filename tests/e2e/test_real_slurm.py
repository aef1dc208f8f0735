"""A run that a real SLURM does: one training is preempted, one reaches its time limit, the result is that of `run`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from slurm_cluster import output, slurm, wait_until, why_missing

from segwright.data.phantom import write_dataset

SOURCE = Path(__file__).parents[2] / "src"
NAME = "Dataset007_Tiny"
RUN = (
    *("--config", "2d", "3d_fullres", "--folds", "0,1", "--device", "cpu", "--workers", "1", "--deterministic"),
    *("--epochs", "20", "--iterations", "5", "--batch-size", "2", "--set", "num_val_iterations_per_epoch=1"),
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def segwright(*arguments: object, **variables: str) -> str:
    words = [sys.executable, "-m", "segwright", *map(str, arguments)]
    done = subprocess.run(words, env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(work: Path, predicted: Path) -> dict[str, object]:
    """Return weights and scores of all folds, what was selected, and the predicted label maps."""
    dataset = work / "results" / NAME
    found: dict[str, object] = {file.name: file.read_bytes() for file in predicted.glob("*.nii.gz")}
    for fold in sorted(dataset.glob("Trainer__*/fold_*")):
        name = f"{fold.parent.name}/{fold.name}"
        weights = load_file(fold / "checkpoint_final.safetensors")
        found |= {f"{name}/{key}": tensor.numpy().tobytes() for key, tensor in weights.items()}
        found[name] = json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]
    found["selection"] = json.loads((dataset / "model" / "summary.json").read_text())["foreground_mean"]
    return found


def process_of(task: str) -> int:
    """Return the id of the Python process that runs a task."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if words[0] == sys.executable and "run-task" in words and task in words:
            return int(folder.name)
    raise AssertionError(f"no process runs {task}")


@pytest.mark.skipif(bool(why_missing()), reason=why_missing())
def test_a_submitted_run_survives_preemption_and_time_limits(tmp_path: Path) -> None:
    raw, work, predicted = tmp_path / NAME, tmp_path / "work", tmp_path / "predicted"
    write_dataset(raw, num_training=6, num_test=3, edge=16)
    submit = ("--work", work, "submit", raw, *RUN, "--gpus", "0", "-i", raw / "imagesTs", "-o", predicted)
    submit += ("--parts", "3", "--time", "10m", "--sbatch", "--comment='it'\\''s \"a\" $HOME \\'")
    (tmp_path / "slurm").mkdir()
    with slurm(tmp_path / "slurm") as variables:
        segwright(*submit, **variables)
        jobs = json.loads((work / "results" / NAME / "slurm" / "jobs.json").read_text())["jobs"]
        train = jobs[1]["id"]
        assert 'Comment=it\'s "a" $HOME \\ ' in output(variables, "scontrol", "show", "job", train)
        model = work / "results" / NAME / "Trainer__nnUNetPlans__2d"
        logs = [model / f"fold_{fold}" / "training.log" for fold in (0, 1)]
        wait_until(lambda: all(log.is_file() and "epoch 1:" in log.read_text() for log in logs), 120)
        # So that it cannot end before its time limit; SLURM lets it go on with the signal.
        os.kill(process_of("train 2d fold 1"), signal.SIGSTOP)
        output(variables, "scontrol", "requeue", f"{train}_0")
        output(variables, "scontrol", "update", f"JobId={train}_1", "TimeLimit=1")
        assert "train 2d fold 1" in segwright("--work", work, "status", **variables)
        wait_until(lambda: "Restarts=1" in output(variables, "scontrol", "show", "job", f"{train}_1"), 120)
        output(variables, "scontrol", "update", f"JobId={train}_1", "TimeLimit=10")
        wait_until(lambda: not output(variables, "squeue", "--noheader").strip(), 300)
        assert "nothing to submit: everything is finished" in segwright(*submit, **variables)
    for fold, reason in ((0, "SIGTERM"), (1, "SIGUSR1")):
        assert f"{reason}: saving after this step" in (model / f"fold_{fold}" / f"train_2d_fold_{fold}.log").read_text()
    expected = tmp_path / "expected"
    segwright("--work", expected, "run", raw, *RUN)
    segwright(
        "predict", "-m", expected / "results" / NAME, "-i", raw / "imagesTs", "-o", tmp_path / "out", "--device", "cpu"
    )
    assert results(work, predicted) == results(expected, tmp_path / "out")
