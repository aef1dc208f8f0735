"""Settings: accepted values, their documentation, and their combination without a subclass."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.data.plan import Plan
from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing.checkpoints import checkpoint_file
from segwright.training.config import TrainConfig, changed
from tests.unit.training.tiny_task import REGIONS_JSON, make, settings

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "training-settings.md"


def test_every_setting_is_in_the_table_and_nothing_else() -> None:
    table = PAGE.read_text().split("## All settings")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(TrainConfig.model_fields)


def test_settings_round_trip_through_json() -> None:
    config = TrainConfig(optimizer_kwargs={"betas": (0.9, 0.99)}, class_weights=(1, 2), lr_groups={"encoder": 0})
    assert TrainConfig.from_mapping(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("key", ["optimizer_kwargs", "network_kwargs"])
def test_arguments_that_no_checkpoint_could_hold_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: .*JSON"):
        TrainConfig.from_mapping({key: {"fn": object()}})


@pytest.mark.parametrize("value", ["layer", 3])
def test_norm_is_one_of_two(value: object) -> None:
    with pytest.raises(ConfigError, match="norm: Input should be 'instance' or 'batch'"):
        changed(TrainConfig(), norm=value)


def test_compile_is_one_of_three() -> None:
    with pytest.raises(ConfigError, match="compile: Input should be 'auto', 'on' or 'off'"):
        changed(TrainConfig(), compile=True)


def test_deterministic_steps_are_not_chosen_by_their_time() -> None:
    with pytest.raises(ConfigError, match="deterministic: the time of the steps decides which are compiled"):
        TrainConfig.from_mapping({"compile": "on", "deterministic": True})


COMBINATIONS: list[dict[str, Any]] = [
    {"loss": "dice_topk10", "class_weights": [0.5, 1, 2], "optimizer": "adamw", "schedule": "warmup+cosine"},
    {"loss": "topk10", "optimizer": "adam", "optimizer_kwargs": {"amsgrad": True}, "norm": "batch"},
    {"loss": "ce", "ema_weights": 0.9, "lr_groups": {"encoder": 0.1, "encoder.stages.0": 0}},
    {"loss": "dice", "norm": "batch", "ema_weights": 0.9, "enable_deep_supervision": False, "network": "residual-unet"},
    {"optimizer": "torch.optim:RMSprop", "schedule": "warmup+poly", "budget_s": 2.0, "precision": "bf16"},
]


@pytest.mark.slow
@pytest.mark.parametrize("values", COMBINATIONS, ids=lambda values: "-".join(map(str, list(values.values())[:2])))
def test_settings_combine_without_a_class(tmp_path: Path, values: dict[str, Any]) -> None:
    trainer = make(tmp_path, config=settings(**{"initial_lr": 1e-3, **values}))
    trainer.initialize()
    frozen = {name: p.detach().clone() for name, p in trainer.network.named_parameters() if not p.requires_grad}
    trainer.run_training()
    assert bool(frozen) == ("lr_groups" in values)
    for name, before in frozen.items():
        assert torch.equal(trainer.network.get_parameter(name), before)
    losses = [*trainer.logbook.column("train_losses"), *trainer.logbook.column("val_losses")]
    assert all(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
    predictor = load_predictor(tmp_path, device="cpu")
    image = torch.zeros(1, 1, 16, 16, 16)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(predictor.networks[0].eval()(image), trainer.network(image))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dice", "dice_bce"])
def test_regions_with_an_ignore_label_train_with_every_loss_that_fits(tmp_path: Path, loss: str) -> None:
    trainer = make(tmp_path, dataset_json=REGIONS_JSON, config=settings(loss=loss, class_weights=[1, 3]))
    trainer.run_training()
    assert trainer.logbook.column("skipped_steps") == [0, 0]


def test_class_weights_reach_the_loss(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="class_weights has 2 entries, expected 3, in the order background, bright, dark"
    ):
        make(tmp_path, config=settings(class_weights=[1, 2])).initialize()


def test_learning_rates_of_the_schedule_are_what_is_logged(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(num_epochs=4, schedule="warmup+cosine", warmup_epochs=2))
    trainer.run_training()
    assert trainer.logbook.column("lrs") == pytest.approx([0.005, 0.01, 0.01, 0.005])


def test_settings_that_matter_cannot_change_on_resuming(tmp_path: Path) -> None:
    make(tmp_path, config=settings(optimizer="adam", initial_lr=1e-3)).run_training()
    other = make(tmp_path, config=settings(optimizer="adamw"))
    with pytest.raises(ConfigError, match="was trained with optimizer = adam, now adamw"):
        other.load_checkpoint(checkpoint_file(other.output_folder, "final"))


def test_plan_is_left_as_it_was_by_the_norm(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=settings(norm="batch", num_epochs=1))
    trainer.run_training()
    kept = Plan.load(tmp_path / "plans.json").configuration("3d").architecture.model_dump(by_alias=True)
    assert "InstanceNorm" in kept["arch_kwargs"]["norm_op"]


def test_settings_remember_what_was_set() -> None:
    config = changed(TrainConfig(seed=3), num_epochs=5)
    assert config.model_fields_set == {"seed", "num_epochs"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_epoch": 5}, "unknown training setting 'num_epoch'; did you mean 'num_epochs'?"),
        ({"sinks": "mlflow"}, "the training setting 'sinks' is called 'loggers' now; set that instead"),
        ({"num_epochs": 0}, "num_epochs: Input should be greater than or equal to 1"),
        ({"precision": "int8"}, "precision: Input should be 'auto'"),
    ],
)
def test_wrong_setting_is_refused_with_the_remedy(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping(values)
    assert words in str(caught.value)


def test_an_earlier_name_is_refused_by_the_constructor_too() -> None:
    with pytest.raises(ValueError, match="'sinks' is called 'loggers' now"):
        TrainConfig(**{"sinks": ("mlflow",)})
