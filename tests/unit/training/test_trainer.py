"""The trainer end to end on a tiny task: files, hooks, knobs, budgets, resuming, final validation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segwright.core.errors import ConfigError, DatasetError, ModelError
from segwright.core.extensions.trust import TRUST_ALL
from segwright.data.crossval.splits import Split
from segwright.data.plan import Configuration, Plan
from segwright.evaluation.scores import Scores
from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing import checkpoints
from segwright.training.checkpointing.checkpoints import checkpoint_file, find_resumable
from segwright.training.config import TrainConfig
from segwright.training.loading.batches import Batch
from segwright.training.monitoring.run_record import git_commit
from segwright.training.trainer import Trainer
from tests.unit.training import tiny_task
from tests.unit.training.tiny_task import (
    DATASET_JSON,
    REGIONS_JSON,
    TimedTrainer,
    make,
    plans,
    settings,
    write_references,
)


def final_weights(trainer: Trainer) -> dict[str, Tensor]:
    return load_file(checkpoint_file(trainer.output_folder, "final"))


def rows(trainer: Trainer) -> list[dict[str, Any]]:
    text = (trainer.output_folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class Elsewhere(Trainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.output_folder = self.output_folder.with_name("elsewhere")


def test_a_subclass_may_choose_another_output_folder(tmp_path: Path) -> None:
    make(tmp_path, Elsewhere, config=settings(num_epochs=1)).run_training()
    names = {file.name for file in (tmp_path / "elsewhere").iterdir()}
    assert {"training.log", "metrics.jsonl", "status.json", "train.json", "progress.png"} <= names
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["elsewhere"]


def test_construction_touches_nothing(tmp_path: Path) -> None:
    trainer = make(tmp_path / "new", device="no such device")
    assert not trainer.was_initialized
    assert not list(tmp_path.iterdir())


def test_run_leaves_the_files_of_a_fold(tmp_path: Path) -> None:
    trainer = make(tmp_path, references=write_references(tmp_path / "labelsTr", DATASET_JSON))
    trainer.run_training()
    scores = trainer.perform_actual_validation()
    names = {str(path.relative_to(trainer.output_folder)) for path in trainer.output_folder.rglob("*")}
    assert names == {
        "checkpoint_best.json",
        "checkpoint_best.safetensors",
        "checkpoint_final.json",
        "checkpoint_final.safetensors",
        "debug.json",
        "metrics.jsonl",
        "network_architecture.png",
        "progress.png",
        "status.json",
        "train.json",
        "training.log",
        "validation",
        "validation/observed",
        "validation/observed/case_3.json",
        "validation/case_3.nii.gz",
        "validation/predictions.json",
        "validation/summary.json",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"fold_0", "labelsTr", "plans.json", "dataset.json"}
    assert Scores.load(trainer.output_folder / "validation" / "summary.json").mean_dice == scores.mean_dice
    assert [(row["epoch"], row["steps"], row["skipped_steps"]) for row in rows(trainer)] == [(0, 2, 0), (1, 2, 0)]
    assert "mean validation Dice" in (trainer.output_folder / "training.log").read_text()


def test_record_says_what_was_run(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.run_training()
    record = json.loads((trainer.output_folder / "train.json").read_text())
    assert record["config"]["batch_size"] == 3
    assert record["seed"] == 12345
    assert record["versions"]["torch"] == torch.__version__
    debug = json.loads((trainer.output_folder / "debug.json").read_text())
    assert "Conv3d(1, 4" in debug["network"]
    assert "initial_lr" in debug
    assert (record["configuration"], record["fold"], record["cases"]) == ("3d", 0, {"train": 3, "val": 1})


def test_task_is_learned(tmp_path: Path) -> None:
    config = settings(num_epochs=4, num_iterations_per_epoch=15, num_val_iterations_per_epoch=4, momentum=0.9)
    trainer = make(tmp_path, config=config, references=write_references(tmp_path / "labelsTr", DATASET_JSON))
    trainer.run_training()
    assert trainer.perform_actual_validation().mean_dice > 0.6
    losses = trainer.logbook.column("train_losses")
    assert isinstance(losses[0], float)
    assert isinstance(losses[-1], float)
    assert losses[-1] < losses[0] - 0.3


class ShortTrainer(Trainer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.num_epochs = 1
        self.initial_lr = 0.5


def test_knob_set_in_a_subclass_works_and_is_saved(tmp_path: Path) -> None:
    trainer = make(tmp_path, ShortTrainer)
    trainer.run_training()
    record = json.loads((trainer.output_folder / "train.json").read_text())
    assert record["trainer"] == "ShortTrainer"
    assert (record["config"]["num_epochs"], record["config"]["initial_lr"]) == (1, 0.5)
    assert [row["lrs"] for row in rows(trainer)] == [0.5]


def test_knob_set_too_late_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.initialize()
    with pytest.raises(ConfigError, match=r"num_epochs = 5 is set after initialize\(\)"):
        trainer.num_epochs = 5


def test_wrong_knob_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.num_epochs = 0
    with pytest.raises(ConfigError, match="num_epochs: Input should be greater than or equal to 1"):
        trainer.initialize()


def test_second_initialization_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.initialize()
    with pytest.raises(ConfigError, match="already initialized"):
        trainer.initialize()


def test_plans_and_dataset_may_be_plain_documents(tmp_path: Path) -> None:
    trainer = make(tmp_path, plans=plans(), dataset_json=DATASET_JSON, config=settings(num_epochs=1))
    trainer.run_training()
    assert trainer.is_finished


def test_unknown_configuration_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean '3d'"):
        make(tmp_path, configuration="3dd")


class Killed(Exception):
    """Stands for the end of the process."""


class DyingTrainer(Trainer):
    """Ends after some steps, having saved as the timer would."""

    steps_left = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        if self.steps_left == 0:
            raise Killed
        self.steps_left -= 1
        if self.steps_left == 0:
            self.save_timer.interval_s = 0.0
        return super().train_step(batch)

    @property
    def trainer_name(self) -> str:
        return "Trainer"


@pytest.mark.parametrize("steps", [1, 3, 4], ids=["in the first epoch", "at an epoch's end", "in the second epoch"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, steps: int) -> None:
    config = settings(num_iterations_per_epoch=3)
    whole = make(tmp_path / "whole", config=config)
    whole.run_training()

    dying = make(tmp_path / "parts", DyingTrainer, config=config)
    dying.steps_left = steps
    with pytest.raises(Killed):
        dying.run_training()
    resumed = make(tmp_path / "parts", config=TrainConfig())
    checkpoint = find_resumable(resumed.output_folder)
    assert checkpoint is not None
    resumed.load_checkpoint(checkpoint)
    assert resumed.current_step == steps
    resumed.run_training()

    torch.testing.assert_close(final_weights(resumed), final_weights(whole), rtol=0, atol=0)
    for key in ("train_losses", "val_losses", "ema_fg_dice", "lrs", "steps"):
        assert resumed.logbook.column(key) == whole.logbook.column(key)
    assert [row["epoch"] for row in rows(resumed)] == [0, 1]


@pytest.mark.slow
def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    trainers = [
        make(tmp_path / str(number), config=settings(num_epochs=1, seed=seed)) for number, seed in enumerate([1, 1, 2])
    ]
    for trainer in trainers:
        trainer.run_training()
    first, same, other = map(final_weights, trainers)
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    name = "decoder.seg_layers.1.weight"
    assert not torch.equal(first[name], other[name])


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    make(tmp_path).run_training()
    again = make(tmp_path)
    again.load_checkpoint(checkpoint_file(again.output_folder, "final"))
    before = checkpoint_file(again.output_folder, "final").stat().st_mtime_ns
    again.run_training()
    assert checkpoint_file(again.output_folder, "final").stat().st_mtime_ns == before
    assert "already trained (2 epochs)" in (again.output_folder / "training.log").read_text()


def test_changed_plan_is_not_resumed(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.run_training()
    other = plans()
    other["configurations"]["3d"]["batch_size"] = 4
    with pytest.raises(ModelError, match="the plan has changed"):
        make(tmp_path, plans=other).load_checkpoint(checkpoint_file(trainer.output_folder, "final"))


def test_budget_ends_on_time_with_an_annealed_learning_rate(tmp_path: Path) -> None:
    config = TrainConfig(budget_s=12.0, num_val_iterations_per_epoch=1, precision="fp32")
    trainer = make(tmp_path, TimedTrainer, config=config)
    trainer.run_training()
    assert 10.0 < trainer.clock.elapsed_s <= 12.0
    group = trainer.optimizer.param_groups[0]
    assert group["lr"] < 0.15 * trainer.initial_lr
    assert trainer.current_epoch > 3
    assert "batch size 2 instead of the plan's 3" in (trainer.output_folder / "training.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d"])
@pytest.mark.parametrize("deep_supervision", [True, False], ids=["deep", "flat"])
def test_regions_with_ignored_voxels_train_and_predict(
    tmp_path: Path, configuration: str, deep_supervision: bool
) -> None:
    trainer = make(
        tmp_path,
        configuration=configuration,
        dataset_json=REGIONS_JSON,
        config=settings(num_epochs=1, enable_deep_supervision=deep_supervision),
        references=write_references(tmp_path / "labelsTr", REGIONS_JSON),
    )
    trainer.run_training()
    scores = trainer.perform_actual_validation()
    assert set(scores.mean) == {"(1, 2)", "2"}
    assert all(row["skipped_steps"] == 0 for row in rows(trainer))


def test_fold_all_trains_and_validates_on_everything(tmp_path: Path) -> None:
    everything = tuple(f"case_{number}" for number in range(4))
    trainer = make(
        tmp_path,
        fold="all",
        split=Split(train=everything, val=everything),
        output_folder=tmp_path / "fold_all",
        config=settings(num_epochs=1),
        references=write_references(tmp_path / "labelsTr", DATASET_JSON),
    )
    trainer.run_training()
    assert len(trainer.perform_actual_validation().metric_per_case) == 4


@pytest.mark.slow
def test_validation_keeps_what_the_same_weights_predicted(tmp_path: Path) -> None:
    references = write_references(tmp_path / "labelsTr", DATASET_JSON)
    trainer = make(tmp_path, config=settings(num_epochs=1), references=references)
    trainer.run_training()
    trainer.perform_actual_validation()
    file = trainer.output_folder / "validation" / "case_3.nii.gz"
    written = file.stat().st_mtime_ns
    trainer.perform_actual_validation()
    assert file.stat().st_mtime_ns == written
    with torch.no_grad():
        next(trainer.network.parameters()).add_(1.0)
    trainer.save_checkpoint("final")
    trainer.perform_actual_validation()
    assert file.stat().st_mtime_ns != written


def test_missing_reference_is_named(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(num_epochs=1), references=tmp_path / "nowhere")
    trainer.run_training()
    with pytest.raises(ValueError, match="case case_3: no reference label"):
        trainer.perform_actual_validation()


class BrokenLossTrainer(Trainer):
    """The second step's loss is NaN."""

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        if self.current_step == 1:
            batch["data"][0, 0, 0, 0, 0] = math.nan
        return super().train_step(batch)


def test_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    trainer = make(tmp_path, BrokenLossTrainer)
    trainer.run_training()
    assert [row["skipped_steps"] for row in rows(trainer)] == [1, 0]
    assert all(bool(torch.isfinite(weight).all()) for weight in final_weights(trainer).values())
    assert isinstance(trainer.logbook.value("ema_fg_dice"), float)
    assert "1 steps skipped" in (trainer.output_folder / "training.log").read_text()


class OwnNetwork(nn.Module):
    def __init__(self, num_input_channels: int, num_output_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv3d(num_input_channels, num_output_channels, 3, padding=1, stride=stride)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.layer(image)
        return result


class OwnNetworkTrainer(Trainer):
    @staticmethod
    def build_network_architecture(
        plans: Plan,
        configuration: Configuration,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return OwnNetwork(num_input_channels, num_output_channels)


class WrongNetworkTrainer(OwnNetworkTrainer):
    @staticmethod
    def build_network_architecture(*arguments: Any) -> nn.Module:
        return OwnNetwork(1, 7)


def build_own(
    num_input_channels: int, num_output_channels: int, *, patch_size: tuple[int, ...], deep_supervision: bool
) -> nn.Module:
    return OwnNetwork(num_input_channels, num_output_channels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "network"),
    [(Trainer, "unet"), (Trainer, "residual-unet"), (Trainer, f"{__name__}:build_own"), (OwnNetworkTrainer, None)],
    ids=["value", "another value", "function", "subclass"],
)
def test_other_networks_train_and_are_rebuilt_for_prediction(
    tmp_path: Path, kind: type[Trainer], network: str | None
) -> None:
    trainer = make(tmp_path, kind, config=settings(num_epochs=1, network=network))
    trainer.run_training()
    image = tiny_task.TinyStore().load("case_3").image
    predictor = load_predictor(tmp_path, device="cpu", precision="fp32", trust=TRUST_ALL)
    trainer.set_deep_supervision_enabled(False)
    with torch.inference_mode():
        patch = torch.from_numpy(np.ascontiguousarray(image[None, :, :16, :16, :16]))
        expected = trainer.network.eval()(patch)
        found = predictor.networks[0](patch)
    torch.testing.assert_close(found, expected)


def test_network_with_the_wrong_output_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    trainer = make(tmp_path, WrongNetworkTrainer)
    with pytest.raises(ModelError, match=r"output 0 .* is \(7, 16, 16, 16\) .* expected .* \(3, 16, 16, 16\)"):
        trainer.run_training()
    assert not list(trainer.output_folder.glob("checkpoint_*"))


def test_network_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="remove one of them"):
        make(tmp_path, OwnNetworkTrainer, config=settings(network="unet")).initialize()


def test_network_arguments_without_a_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="network_kwargs are set without a network"):
        make(tmp_path, config=settings(network_kwargs={"width": 3})).initialize()


def test_mirror_axes_reach_the_checkpoint(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(num_epochs=1, mirror_axes=(0,)))
    trainer.run_training()
    assert load_predictor(tmp_path, device="cpu").window.mirror_axes == (0,)


def test_mirror_axis_that_a_patch_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spatial axes 0 to 2"):
        make(tmp_path, config=settings(mirror_axes=(3,))).initialize()


def test_no_checkpoint_is_written_if_checkpointing_is_disabled(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(disable_checkpointing=True))
    trainer.run_training()
    assert not list(trainer.output_folder.glob("checkpoint_*"))


class Listener:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def log(self, metrics: Any, step: int) -> None:
        self.events.append((step, metrics["steps"]))

    def close(self) -> None:
        self.events.append("closed")


def test_loggers_get_every_epoch_and_are_closed(tmp_path: Path) -> None:
    listener = Listener()
    make(tmp_path, loggers=[listener]).run_training()
    assert listener.events == [(0, 2), (1, 2), "closed"]


opened: list[Listener] = []


def open_listener(folder: Path) -> Listener:
    opened.append(Listener())
    return opened[-1]


def test_a_checkpoint_with_the_earlier_name_of_the_loggers_is_resumed(tmp_path: Path) -> None:
    opened.clear()
    dying = make(tmp_path, DyingTrainer, config=settings(loggers=f"{__name__}:open_listener"))
    dying.steps_left = 2
    with pytest.raises(Killed):
        dying.run_training()
    path = checkpoint_file(dying.output_folder, "latest")
    saved = checkpoints.load(path)
    earlier = {"config": {**saved.state.config, "sinks": saved.state.config["loggers"]}}
    del earlier["config"]["loggers"]
    earlier["config_set"] = ["sinks" if name == "loggers" else name for name in saved.state.config_set]
    state = saved.state.model_copy(update=earlier)
    checkpoints.save(dying.output_folder, "latest", state, saved.weights, optimizer=saved.optimizer)

    resumed = make(tmp_path, config=TrainConfig(), trust_code=True)
    resumed.load_checkpoint(path)
    resumed.run_training()
    assert resumed.config == dying.config
    assert resumed.config.model_fields_set == dying.config.model_fields_set
    assert [listener.events for listener in opened] == [[(0, 2)], [(1, 2), "closed"]]


def test_second_stage_of_a_cascade_needs_the_previous_stages_maps(tmp_path: Path) -> None:
    document = plans()
    document["configurations"]["3d"]["previous_stage"] = "2d"
    with pytest.raises(DatasetError, match="1 label maps, expected 2"):
        make(tmp_path, plans=document).run_training()


def test_commit_is_read_from_loose_and_packed_references(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    assert git_commit(tmp_path) is None
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{commit} refs/heads/main\n")
    assert git_commit(tmp_path) == commit
    (git / "refs" / "heads" / "main").write_text(commit[::-1] + "\n")
    assert git_commit(tmp_path) == commit[::-1]
    (git / "HEAD").write_text(commit + "\n")
    assert git_commit(tmp_path) == commit
