"""The estimate of time, memory and disk, from the first steps of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segwright.training.monitoring.cost import TIMED_S, WARM_UP_S, CostEstimate, StepTimer, TrainingCost
from segwright.training.monitoring.thread_choice import LONGEST_TRIAL, TRIAL_STEPS, thread_numbers
from segwright.training.trainer import Trainer
from tests.unit.training.test_trainer import final_weights
from tests.unit.training.tiny_task import make, settings

LOSS = torch.zeros(())
COST = TrainingCost(
    step_s=1.438,
    epoch_s=390.0,
    num_epochs=1000,
    memory_bytes=2 * 2**30,
    device_memory_bytes=0,
    checkpoint_bytes=66 * 2**20,
)


class Clock:
    """A clock that advances by a number of seconds whenever a step ends."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def timed(seconds: list[float]) -> tuple[float | None, int]:
    """Return the mean that a timer gives for steps of known times, and how many steps it needed."""
    clock = Clock()
    timer = StepTimer(clock)
    for count, each in enumerate(seconds, start=1):
        clock.time += each
        if (mean := timer.add_step(LOSS)) is not None:
            return mean, count
    return None, len(seconds)


@pytest.mark.parametrize("step_s", [0.01, 0.4, 1.5, 60.0])
def test_the_mean_is_that_of_steps_after_the_warm_up(step_s: float) -> None:
    mean, count = timed([0.5, 0.5] + [step_s] * 1000)
    assert mean == pytest.approx(step_s)
    assert count == pytest.approx(2 + max(1, TIMED_S / step_s), abs=1)
    assert WARM_UP_S == 1.0


def test_a_batch_that_is_waited_for_counts() -> None:
    mean, _ = timed([2.0, 1.0, 3.0, 1.0, 3.0])  # two threads make two batches at a time
    assert mean == pytest.approx(2.0)


def test_no_estimate_from_too_few_steps() -> None:
    assert timed([0.1] * 12)[0] is None


def test_the_line_for_the_log() -> None:
    assert COST.describe() == (
        "1.44 s per step, 6 min 30 s per epoch, 108 h 20 min for 1000 epochs; 2.0 GiB of memory, 66.0 MiB for "
        "checkpoints"
    )
    budgeted = replace(COST, num_epochs=None, memory_bytes=None, device_memory_bytes=2**30)
    assert budgeted.describe() == (
        "1.44 s per step, 6 min 30 s per epoch; 1.0 GiB of GPU memory, 66.0 MiB for checkpoints"
    )


class Ticking(CostEstimate):
    """An estimate for steps that take a second each."""

    def __init__(self, after_steps: int = 0) -> None:
        self.clock = Clock()
        super().__init__(after_steps=after_steps, now=self.clock)

    def on_train_step_end(self, trainer: Trainer) -> None:
        self.clock.time += 1.0
        super().on_train_step_end(trainer)


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", None), pytest.param("adamw", 0.9, marks=pytest.mark.slow)])
def test_a_training_logs_its_cost_once_and_learns_the_same(tmp_path: Path, optimizer: str, ema: float | None) -> None:
    config = settings(num_iterations_per_epoch=6, optimizer=optimizer, ema_weights=ema)
    plain, watched = (make(tmp_path / name, config=config) for name in ("plain", "watched"))
    plain.run_training()
    watched.callbacks.append(Ticking())
    watched.run_training()
    lines = [line for line in (watched.output_folder / "training.log").read_text().splitlines() if "per step" in line]
    assert len(lines) == 1
    assert "about 1 s per step, 6 s per epoch, 13 s for 2 epochs; " in lines[0]
    before, after = final_weights(plain), final_weights(watched)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_steps_of_a_trial_of_threads_are_not_timed() -> None:
    estimate = Ticking(after_steps=LONGEST_TRIAL)
    estimate.on_train_epoch_start(None)  # type: ignore[arg-type]
    for _ in range(LONGEST_TRIAL):
        estimate.on_train_step_end(None)  # type: ignore[arg-type]  # it would look at the trainer
    assert len(thread_numbers(64)) * TRIAL_STEPS == LONGEST_TRIAL


@pytest.mark.parametrize("ema", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_checkpoints_are_as_large_as_estimated(tmp_path: Path, ema: float | None) -> None:
    sizes = {"bytes": 0}

    class Measuring(Ticking):
        def on_epoch_end(self, trainer: Trainer) -> None:
            files = trainer.output_folder.glob("checkpoint_*")
            sizes["bytes"] = max(sum(file.stat().st_size for file in files), sizes["bytes"])

    wide = {"network": "unet", "network_kwargs": {"features_per_stage": [32, 64, 64]}}
    config = settings(num_iterations_per_epoch=5, ema_weights=ema, save_every=1, **wide)
    trainer = make(tmp_path, config=config)
    trainer.callbacks.append(Measuring())
    trainer.run_training()
    (line,) = [each for each in (tmp_path / "fold_0" / "training.log").read_text().splitlines() if "per step" in each]
    estimate = float(line.rpartition(", ")[2].split()[0]) * 2**20
    assert sizes["bytes"] == pytest.approx(estimate, rel=0.1)
