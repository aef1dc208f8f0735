"""Settings that depend on plan, device and budget."""

from __future__ import annotations

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.data.plan import Plan
from segwright.training.config import TrainConfig
from segwright.training.defaults import num_validation_steps, planned_epochs, resolve_config, save_interval_s
from segwright.training.network_setup import architecture_spec
from tests.unit.training.tiny_task import plans, settings

CPU = torch.device("cpu")
CONFIGURATION = Plan.from_json(plans()).configuration("3d")


def test_plan_decides_settings_that_were_not_set() -> None:
    resolved = resolve_config(settings(), CONFIGURATION, CPU)
    assert (resolved.config.batch_size, resolved.config.batch_dice, resolved.notes) == (3, False, ())


def test_budget_on_a_cpu_takes_small_batches_and_says_so() -> None:
    resolved = resolve_config(settings(budget_s=60), CONFIGURATION, CPU)
    assert resolved.config.batch_size == 2
    assert "instead of the plan's 3" in resolved.notes[0]


def test_batch_size_that_was_set_is_kept() -> None:
    resolved = resolve_config(settings(budget_s=60, batch_size=3), CONFIGURATION, CPU)
    assert resolved.config.batch_size == 3
    assert not any("batch" in note for note in resolved.notes)


@pytest.mark.parametrize(
    ("values", "momentum"),
    [({}, 0.95), ({"budget_s": 7200}, 0.99), ({"momentum": 0.99}, 0.99), ({"budget_s": None}, 0.99)],
)
def test_momentum_is_lower_under_a_short_budget_on_a_cpu_unless_it_was_set(
    values: dict[str, float], momentum: float
) -> None:
    resolved = resolve_config(settings(**{"budget_s": 60, **values}), CONFIGURATION, CPU)
    assert resolved.config.momentum == momentum
    assert any("momentum" in note for note in resolved.notes) == (momentum == 0.95)


def test_momentum_of_a_short_budget_is_unchanged_if_the_optimizer_has_none() -> None:
    assert not any(
        "momentum" in note for note in resolve_config(settings(budget_s=60, optimizer="adam"), CONFIGURATION, CPU).notes
    )


MEDNEXT = CONFIGURATION.model_copy(
    update={"architecture": CONFIGURATION.architecture.model_copy(update={"network_class_name": "mednext"})}
)


@pytest.mark.parametrize(
    ("values", "optimizer", "rate", "kwargs"),
    [
        ({}, "adamw", 1e-3, {"eps": 1e-4}),
        ({"initial_lr": 1e-4, "schedule": "cosine"}, "adamw", 1e-4, {"eps": 1e-4}),
        ({"optimizer": "sgd"}, "sgd", 1e-2, {}),
        ({"momentum": 0.9}, "sgd", 1e-2, {}),
        ({"network": "unet"}, "sgd", 1e-2, {}),
    ],
)
def test_mednext_is_trained_as_published_unless_the_optimizer_is_set(
    values: dict[str, object], optimizer: str, rate: float, kwargs: dict[str, float]
) -> None:
    resolved = resolve_config(settings(**values), MEDNEXT, CPU)
    config = resolved.config
    assert (config.optimizer, config.initial_lr, config.optimizer_kwargs) == (optimizer, rate, kwargs)
    assert any("as published for MedNeXt" in note for note in resolved.notes) == (optimizer == "adamw")
    own = resolve_config(settings(network="mednext"), CONFIGURATION, CPU, has_own_optimizer=True)
    assert own.config.optimizer == "sgd"


def test_norm_of_mednext_cannot_be_set() -> None:
    for values, configuration in (({}, MEDNEXT), ({"network": "mednext"}, CONFIGURATION)):
        with pytest.raises(ConfigError, match="norm = 'batch' is for built-in networks; network 'mednext' chooses its"):
            architecture_spec(settings(norm="batch", **values), configuration)
    assert architecture_spec(settings(norm="batch", network="unet"), MEDNEXT).reference == "unet"


FITTED = CONFIGURATION.model_copy(update={"time_budget_s": 600.0})


def test_a_plan_for_a_budget_is_trained_as_it_is_but_with_adamw() -> None:
    resolved = resolve_config(settings(budget_s=60), FITTED, CPU)
    config = resolved.config
    assert (config.batch_size, config.optimizer, config.initial_lr, config.schedule) == (
        3,
        "adamw",
        3e-3,
        "warmup+poly",
    )
    assert resolved.notes == (
        "optimizer adamw instead of sgd, initial_lr 0.003 instead of 0.01, schedule warmup+poly instead of poly: "
        "better for the few steps of a plan for a time budget; set one of them to override",
    )


@pytest.mark.parametrize(
    "values",
    [{"optimizer": "sgd"}, {"initial_lr": 0.02}, {"nesterov": False}, {"optimizer_kwargs": {"dampening": 0.0}}],
)
def test_an_optimizer_of_ones_own_is_kept_with_a_plan_for_a_budget(values: dict[str, object]) -> None:
    given = settings(budget_s=60, **values)
    assert resolve_config(given, FITTED, CPU).config.optimizer == "sgd"
    assert resolve_config(given, FITTED, CPU).config.initial_lr == given.initial_lr
    hook = resolve_config(settings(budget_s=60), FITTED, CPU, has_own_optimizer=True).config
    assert (hook.optimizer, hook.initial_lr) == ("sgd", 0.01)


def test_a_plan_for_a_budget_is_trained_by_epochs_as_any_plan() -> None:
    assert resolve_config(settings(), FITTED, CPU).config.optimizer == "sgd"


def test_budget_on_an_accelerator_keeps_the_plan_s_batch_size() -> None:
    assert resolve_config(settings(budget_s=60), CONFIGURATION, torch.device("mps")).config.batch_size == 3


def test_validation_after_a_budgeted_epoch_is_short() -> None:
    budgeted = TrainConfig(budget_s=60)
    assert [num_validation_steps(budgeted, steps) for steps in (1, 60, 250, 9999)] == [1, 6, 25, 50]
    assert num_validation_steps(TrainConfig(), 1) == 50


def test_number_of_epochs_counts_under_a_budget_only_if_it_was_set() -> None:
    assert planned_epochs(TrainConfig(budget_s=60)) is None
    assert planned_epochs(TrainConfig(budget_s=60, num_epochs=7)) == 7
    assert planned_epochs(TrainConfig()) == 1000


def test_budgeted_run_is_saved_more_often() -> None:
    assert save_interval_s(TrainConfig()) == 600
    assert save_interval_s(TrainConfig(budget_s=600)) == 60
