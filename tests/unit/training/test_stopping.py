"""Early ends of a training: by request, by a stop file, by divergence; what is saved and how it resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ModelError
from segwright.core.interrupt import EXIT_RESUMABLE, Interrupted, StopRequest
from segwright.training.checkpointing.checkpoints import checkpoint_file, find_resumable, is_finished, load, read_state
from segwright.training.loading.batches import Batch
from segwright.training.monitoring.divergence import DivergedError, DivergenceMonitor, check_loss
from segwright.training.monitoring.status import STATUS_JSON, STOP_FILE, Status
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import DATASET_JSON, TimedTrainer, TinyStore, make, settings, write_references


class StopFileTrainer(TimedTrainer):
    """Finds a stop file after its third step."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        if self.current_step == 2:
            (self.output_folder / STOP_FILE).touch()
        return super().train_step(batch)


class DropoutTrainer(Trainer):
    @staticmethod
    def build_network_architecture(*arguments: Any, **named: Any) -> nn.Module:
        return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.3), nn.Conv3d(4, 3, 1))


def ask_in_the_third_step(stop: StopRequest, trainer: Trainer, hook: Any, batch: Batch) -> dict[str, Tensor]:
    if trainer.current_step == 2:
        stop.request("SIGTERM")
    result: dict[str, Tensor] = hook(batch)
    return result


def status(trainer: Trainer) -> Status:
    return Status.model_validate(json.loads((trainer.output_folder / STATUS_JSON).read_text()))


def test_a_request_saves_after_the_step_and_resuming_gives_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(num_epochs=2, num_iterations_per_epoch=3)
    whole = make(tmp_path / "whole", DropoutTrainer, config=config)
    whole.run_training()
    stop = StopRequest()
    stopped = make(tmp_path / "parts", DropoutTrainer, config=config, stop=stop)
    hook = stopped.train_step
    monkeypatch.setattr(stopped, "train_step", lambda batch: ask_in_the_third_step(stop, stopped, hook, batch))
    with pytest.raises(
        Interrupted, match=r"SIGTERM: saved after 3 steps; continue with 'segwright train --resume'"
    ) as caught:
        stopped.run_training()
    assert caught.value.exit_code == EXIT_RESUMABLE == 75
    assert status(stopped).state == "interrupted"
    path = find_resumable(stopped.output_folder)
    assert path is not None
    assert read_state(path).step == 3
    resumed = make(tmp_path / "parts", DropoutTrainer, config=config)
    resumed.load_checkpoint(path)
    resumed.run_training()
    weights = [load(checkpoint_file(trainer.output_folder, "final")).weights for trainer in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert whole.logbook.column("train_losses") == resumed.logbook.column("train_losses")
    assert status(resumed).state == "finished"


def test_a_request_in_the_last_validation_interrupts_after_the_training(tmp_path: Path) -> None:
    stop = StopRequest()

    class LateTrainer(Trainer):
        def on_validation_epoch_start(self) -> None:
            stop.request("SIGUSR1")

    trainer = make(tmp_path, LateTrainer, config=settings(num_epochs=1), stop=stop)
    with pytest.raises(Interrupted, match="the training is finished"):
        trainer.run_training()
    assert is_finished(trainer.output_folder)


def test_requests_are_watched_only_in_the_loop(tmp_path: Path) -> None:
    watched: list[bool] = []

    def look(trainer: Trainer) -> None:
        watched.append(trainer.stop.is_watched)

    trainer = make(tmp_path, config=settings(num_epochs=1), callbacks=[look])
    trainer.run_training()
    assert watched == [True]
    assert not trainer.stop.is_watched


def test_a_stop_file_ends_the_training_normally(tmp_path: Path) -> None:
    references = write_references(tmp_path / "labelsTr", DATASET_JSON)
    config = settings(num_epochs=50, num_iterations_per_epoch=4)
    trainer = make(tmp_path, StopFileTrainer, config=config, references=references)
    trainer.run_training()
    assert is_finished(trainer.output_folder)
    assert (trainer.current_epoch, trainer.current_step) == (1, 3)
    assert not (trainer.output_folder / STOP_FILE).exists()
    assert trainer.perform_actual_validation().mean_dice >= 0


def test_a_training_can_be_resumed_before_its_first_step(tmp_path: Path) -> None:
    class KilledTrainer(Trainer):
        def train_step(self, batch: Batch) -> dict[str, Tensor]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, KilledTrainer, config=settings(seed=3)).run_training()
    path = find_resumable(tmp_path / "fold_0")
    assert path is not None
    assert (read_state(path).step, read_state(path).config["seed"]) == (0, 3)


class BrokenStore(TinyStore):
    """Case 1 has become infinite on its way to the disk."""

    def load(self, identifier: str) -> Any:
        case = super().load(identifier)
        if identifier == "case_1":
            case.image[...] = math.inf
        return case


def test_cases_of_skipped_steps_are_named(tmp_path: Path) -> None:
    config = settings(num_epochs=1, num_iterations_per_epoch=6, augmentation="none", batch_size=1)
    trainer = make(tmp_path, config=config, cases=BrokenStore())
    trainer.run_training()
    assert trainer.logbook.value("skipped_steps")
    assert "loss or gradient not finite; cases: case_1\n" in (trainer.output_folder / "training.log").read_text()
    assert all(bool(torch.isfinite(weight).all()) for weight in trainer.network.parameters())


class ExplodingTrainer(Trainer):
    """Loses its weights after the second step."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        if self.current_step == 2:
            self.save_checkpoint("latest")
            self.save_timer.interval_s = 0.0
            for weight in self.network.parameters():
                weight.data.fill_(math.nan)
        return super().train_step(batch)


def test_a_diverged_training_ends_with_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DivergenceMonitor.__init__, "__defaults__", (5,))
    trainer = make(tmp_path, ExplodingTrainer, config=settings(num_iterations_per_epoch=20))
    with pytest.raises(DivergedError, match=r"5 training steps in a row .* \(cases case_"):
        trainer.run_training()
    assert trainer.current_step == 6
    path = find_resumable(trainer.output_folder)
    assert path is not None
    assert read_state(path).step == 2
    assert all(bool(torch.isfinite(weight).all()) for weight in load(path).weights.values())


def test_skipped_steps_in_a_row_are_counted_across_epochs_until_a_finite_one() -> None:
    monitor = DivergenceMonitor(limit=3)
    for loss in (math.nan, math.nan, 1.0, math.inf):
        monitor.add_step(0, torch.tensor(loss), ["a"])
    assert not monitor.last_step_is_finite
    monitor.begin_epoch()
    monitor.add_step(0, torch.tensor(math.nan), ["b"])
    with pytest.raises(DivergedError, match="cases b, c"):
        monitor.add_step(1, torch.tensor(math.nan), ["c"])


def nan_loss(output: Tensor, target: Tensor, *, labels: Any) -> Tensor:
    return output.sum() * math.nan


def test_a_first_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(loss=f"{__name__}:nan_loss"))
    with pytest.raises(ModelError, match="the loss nan, expected .* the loss of its finite output is not"):
        trainer.run_training()


def test_the_first_loss_of_an_image_that_is_not_finite_is_not_refused() -> None:
    loss = torch.tensor(math.nan, requires_grad=True)
    check_loss(loss, torch.zeros(1), torch.tensor([math.inf]), ["a"])
    with pytest.raises(ModelError, match="output 1 of the network is not finite"):
        check_loss(loss, [torch.zeros(1), torch.tensor([math.nan])], torch.zeros(1), ["a"])
