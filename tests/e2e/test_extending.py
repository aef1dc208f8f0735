"""User code from files outside the package, on the command line; stopped and resumed trainings."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from journeys import Journey, call, small_work
from safetensors.numpy import load_file

from segwright.core.interrupt import EXIT_RESUMABLE

SOURCE = Path(__file__).parents[2] / "src"
SHORT = ("--config", "3d_fullres", "--iterations", "2", "--batch-size", "2", "--device", "cpu")
SHORT += ("--set", "num_val_iterations_per_epoch=2")

NETWORK = """
from torch import nn

def build(num_input_channels, num_output_channels, *, patch_size, deep_supervision, width=4):
    return nn.Sequential(
        nn.Conv3d(num_input_channels, width, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(width, num_output_channels, 1)
    )
"""

TRAINING = """
import json
import torch.nn.functional as F
from segwright.augmentation.recipe import build_recipe
from segwright.training.trainer import Trainer

def focal(output, target, *, labels):
    return (F.cross_entropy(output, target[:, 0].long(), reduction="none") ** 2).mean()

def calm(*arguments, **named):
    return build_recipe("default", *arguments, **named).without("mirror")

class Counter:
    def on_epoch_end(self, trainer):
        with open(trainer.output_folder / "counted.txt", "a") as stream:
            stream.write(f"{trainer.current_epoch}\\n")

class LoudTrainer(Trainer):
    def on_train_end(self):
        super().on_train_end()
        self.print_to_log_file("a loud trainer was here")
"""


def run(*arguments: object, folder: Path, path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, *path)))}
    command = [sys.executable, "-P", "-m", "segwright", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def work(journey: Journey, tmp_path: Path) -> Path:
    """A separate work folder with the preprocessed data of the run and a small network."""
    return small_work(journey, tmp_path / "work")


def test_a_users_files_train_by_command_line_and_predict_without_them(
    journey: Journey, work: Path, tmp_path: Path
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        folder.mkdir()
        (folder / "mynets.py").write_text(NETWORK)
    (project / "mytraining.py").write_text(TRAINING)
    trained = run(
        *("--work", work, "train", journey.dataset, *SHORT, "--fold", "0", "--epochs", "2"),
        *("--network", "mynets:build", "--network-arg", "width=6", "--trainer", "mytraining:LoudTrainer"),
        *("--set", "loss=mytraining:focal", "--set", "augmentation=mytraining:calm"),
        *("--set", "callbacks=mytraining:Counter"),
        folder=project,
    )
    assert trained.returncode == 0, trained.stderr
    [model] = work.glob("results/*/LoudTrainer-mynets.build__nnUNetPlans__3d_fullres")
    assert (model / "fold_0" / "counted.txt").read_text() == "1\n2\n"
    assert "a loud trainer was here" in (model / "fold_0" / "training.log").read_text()
    predict = (
        "predict",
        "--model",
        model,
        "-i",
        journey.dataset / "imagesTs",
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    refused = run(*predict, folder=elsewhere)
    assert refused.returncode == 1
    assert "names the network 'mynets:build'" in refused.stderr
    assert "--trust-code" in refused.stderr
    predicted = run(*predict, "--network", "mynets:build", folder=elsewhere)
    assert predicted.returncode == 0, predicted.stderr
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


RATES = """
import json, math, os, signal
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
import segwright

class Pair(nn.Module):
    def __init__(self, inputs, heads):
        super().__init__()
        self.body, self.head = nn.Conv3d(inputs, 4, 3, padding=1), nn.Conv3d(4, heads, 1)

    def forward(self, data):
        features = self.body(data).relu()
        return {"logits": self.head(features), "features": features}

class TwoRates(segwright.Trainer):
    @staticmethod
    def build_network_architecture(plans, configuration, inputs, heads, deep_supervision=True):
        return Pair(inputs, heads)

    @staticmethod
    def logits_of(output):
        return output["logits"]

    def build_loss(self):
        plain = super().build_loss()
        return lambda output, target: plain(output, target) + 1e-3 * output["features"].abs().mean()

    def configure_optimizers(self):
        groups = [(self.network.body, 1e-4), (self.network.head, 1e-3)]
        optimizer = AdamW([{"params": part.parameters(), "lr": rate} for part, rate in groups])
        return optimizer, CosineAnnealingLR(optimizer, T_max=self.num_epochs)

class Rates:
    def on_train_step_start(self, trainer):
        with open(trainer.output_folder / "rates.jsonl", "a") as stream:
            stream.write(json.dumps([group["lr"] for group in trainer.optimizer.param_groups]) + "\\n")

class Stop:
    def on_train_step_end(self, trainer):
        if trainer.current_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_rates_of_ones_own_are_used_and_resumed_exactly_and_extra_outputs_predict(
    journey: Journey, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "rates.py").write_text(RATES)
    train = ("--work", work, "train", journey.dataset, *SHORT, "--fold", "0", "--epochs", "4", "--deterministic")
    train = (*train, "--trainer", "rates:TwoRates")
    for name, callbacks in (("straight", "rates:Rates"), ("broken", "rates:Rates,rates:Stop")):
        trained = run(*train, "--name", name, "--set", f"callbacks={callbacks}", folder=tmp_path)
        assert trained.returncode == (0 if name == "straight" else EXIT_RESUMABLE), trained.stderr
    resumed = run(*train, "--name", "broken", "--set", "callbacks=rates:Rates", "--resume", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    straight, broken = (next(work.glob(f"results/*/{name}__*")) for name in ("straight", "broken"))
    rates = [json.loads(line) for line in (straight / "fold_0" / "rates.jsonl").read_text().splitlines()]
    factors = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(2)]
    found = [rate for step in rates for rate in step]
    assert found == pytest.approx([rate * factor for factor in factors for rate in (1e-4, 1e-3)], rel=1e-12)
    left, right = ((model / "fold_0" / "rates.jsonl").read_text() for model in (straight, broken))
    assert left == right
    assert differences(straight, broken) == {}
    predict = ("predict", "--model", broken, "-i", journey.dataset / "imagesTs", "-o", tmp_path / "out", "--trust-code")
    predicted = run(*predict, "--device", "cpu", folder=tmp_path)
    assert predicted.returncode == 0, predicted.stderr


def differences(first: Path, second: Path) -> dict[str, float]:
    """Return the largest difference of each of the final weights that are not equal in all bits, by name."""
    left, right = (load_file(model / "fold_0" / "checkpoint_final.safetensors") for model in (first, second))
    assert left.keys() == right.keys()
    return {
        name: float(abs(left[name] - right[name]).max())
        for name in left
        if left[name].tobytes() != right[name].tobytes()
    }


def test_a_wrong_trainer_is_refused_before_anything_is_written(journey: Journey, tmp_path: Path) -> None:
    for trainer, message in (("json:JSONDecoder", "is not a subclass of"), ("nowhere:T", "no module named nowhere")):
        result = call(
            *("--work", tmp_path / "w", "train", journey.dataset, *SHORT, "--fold", "0", "--trainer", trainer)
        )
        assert result.exit_code == 1
        assert message in result.stderr
    assert not (tmp_path / "w" / "results").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "num_epoch=3"), "did you mean 'num_epochs'"),
        (("--set", "optimizer=sdg"), "did you mean 'sgd'"),
        (("--set", "sinks=tensorboard"), "the training setting 'sinks' is called 'loggers' now"),
        (("--set", "loggers=tensorbord"), "did you mean 'tensorboard'"),
        (("--deterministic", "--budget", "10s"), "deterministic: under a budget"),
        (("--resume",), "no training to resume"),
    ],
)
def test_wrong_settings_are_refused(journey: Journey, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    shutil.copytree(journey.work / "preprocessed", tmp_path / "work" / "preprocessed")
    result = call("--work", tmp_path / "work", "train", journey.dataset, *SHORT, "--fold", "0", *options)
    assert result.exit_code == 1
    assert message in result.stderr


def wait_for_epoch(folder: Path, process: subprocess.Popen[str], epoch: int) -> None:
    deadline = time.monotonic() + 60
    metrics = folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and f'"epoch": {epoch}' in metrics.read_text():
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


LONG = (*SHORT, "--epochs", "12", "--deterministic", "--set", "save_interval_s=0.2", "--fold", "1")
FOLD = Path("Trainer__nnUNetPlans__3d_fullres") / "fold_1"


def curve(folder: Path) -> tuple[list[float], bytes]:
    """Return losses and weights of a training."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = (folder / "checkpoint_final.safetensors").read_bytes()
    return [row["train_losses"] for row in rows], weights[-10_000:]


@pytest.fixture(scope="module")
def uninterrupted(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], bytes]:
    work = small_work(journey, tmp_path_factory.mktemp("uninterrupted") / "work")
    result = call("--work", work, "train", journey.dataset, *LONG)
    assert result.exit_code == 0, result.stderr
    return curve(work / "results" / journey.dataset.name / FOLD)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_training_that_is_ended_goes_on_as_if_it_had_not_been(
    journey: Journey, work: Path, uninterrupted: tuple[list[float], bytes], number: signal.Signals
) -> None:
    command = ("--work", work, "train", journey.dataset, *LONG)
    process = subprocess.Popen(
        [sys.executable, "-m", "segwright", *map(str, command)],
        # The last bits depend on the number of threads.
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = work / "results" / journey.dataset.name / FOLD
    wait_for_epoch(folder, process, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == EXIT_RESUMABLE, errors
        assert f"{number.name}: saved after" in errors
        [state] = json.loads(call("status", folder, "--json").stdout)
        assert (state["state"], state["num_epochs"]) == ("interrupted", 12)
    again = call(*command)
    assert again.exit_code == 1
    assert "continue it with --resume" in again.stderr
    resumed = call(*command, "--resume")
    assert resumed.exit_code == 0
    assert "OMP_NUM_THREADS" not in resumed.stderr
    assert curve(folder) == uninterrupted


def test_status_of_nothing_is_an_error(tmp_path: Path) -> None:
    result = call("status", tmp_path)
    assert result.exit_code == 1
    assert "no training found" in result.stderr


def test_status_shows_every_fold(journey: Journey) -> None:
    result = call("status", journey.work)
    assert result.exit_code == 0
    assert "Trainer__nnUNetPlans__3d_fullres/fold_0" in result.stdout
    assert "finished" in result.stdout
