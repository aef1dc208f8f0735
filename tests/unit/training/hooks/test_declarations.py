"""What a trainer subclass declares: static hooks, signatures, misspelt names, hyperparameters in the class body."""

from __future__ import annotations

from functools import cached_property, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.training.config import TrainConfig
from segwright.training.hooks.declarations import require_sound
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make, settings


def declare(**members: Any) -> None:
    """Check a trainer class with these members, as `initialize` does first."""
    require_sound(type("Own", (Trainer,), {"__module__": __name__, **members}), Trainer, {})


def method(*names: str) -> Any:
    """Return a function with these parameters."""
    namespace: dict[str, Any] = {}
    exec(f"def hook({', '.join(names)}): return {names[0] if names else None}", namespace)
    return namespace["hook"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "logits_of",
            method("self", "output"),
            "logits_of must be a static method.*@staticmethod above 'def logits_of",
        ),
        (
            "build_network_architecture",
            method("self", "plans", "configuration", "inputs", "heads", "deep=True"),
            r"@staticmethod above 'def build_network_architecture\(plans, configuration, num_input_channels, "
            r"num_output_channels, enable_deep_supervision=True\)'",
        ),
        ("build_network_architecture", staticmethod(method("plans", "heads")), r"called as build_network_architecture"),
        ("train_step", method("self"), r"train_step takes \(self\), but is called as train_step\(batch\)"),
        ("on_train_epoch_end", method("self"), r"called as on_train_epoch_end\(steps\)"),
        ("configure_optimizers", method("self", "network"), r"called as configure_optimizers\(\): missing.*'network'"),
        (
            "on_epoch_strat",
            method("self"),
            "Own.on_epoch_strat is never used; did you mean the method 'on_epoch_start'",
        ),
        ("on_epoch_begin", method("self"), "did you mean the method 'on_epoch_start'"),
        ("logit_of", staticmethod(method("output")), "did you mean the method 'logits_of'"),
        ("configure_optimizer", method("self"), "did you mean the method 'configure_optimizers'"),
        ("training_step", method("self", "batch"), "did you mean the method 'train_step'"),
        ("_build_loss", method("self"), "is a hook of nnU-Net's trainer.*override build_loss"),
        ("do_split", method("self"), "write splits_final.json, or train nnU-Net's class with --nnunet-trainer"),
        ("on_train_step_end", method("self"), "is an event of callbacks; override train_step"),
        ("inital_lr", 1e-3, "Own.inital_lr is never used; did you mean the attribute 'initial_lr'"),
        ("momentum", 0.9, "sets momentum, which has no effect as an attribute; give it as a setting: momentum="),
        ("loss", method("output", "target"), "sets loss before initialize.*override build_loss, or give loss="),
    ],
)
def test_what_would_be_ignored_or_fail_later_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        declare(**{name: value})
    assert "\n" not in str(error.value)


def test_a_misspelt_attribute_of_the_constructor_is_refused(tmp_path: Path) -> None:
    class Own(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.num_epoch = 5

    with pytest.raises(ConfigError, match="Own.num_epoch is never used; did you mean the attribute 'num_epochs'"):
        make(tmp_path, Own).initialize()


@pytest.mark.parametrize(
    "name",
    [
        *(
            "train_step_of_student",
            "my_train_step",
            "_train_step",
            "on_gpu",
            "build_network",
            "loss_of",
            "boundary_loss",
        ),
        *("compute_validation_loss", "save_features", "load_teacher", "get_teacher", "network_ema", "epoch_weights"),
        *("freeze", "log", "log_epoch", "print_epoch", "stop_epoch", "configure", "configure_schedule", "set_epoch"),
    ],
)
@pytest.mark.parametrize("value", [method("self"), 3])
def test_ordinary_names_of_ones_own_are_allowed(name: str, value: Any) -> None:
    declare(**{name: value})


class Helpers(Trainer):
    """Names near those of hooks and knobs that its code uses."""

    batch_sizes = (2, 4)

    def train_steps(self) -> int:
        return len(self.batch_sizes)

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self.train_steps()


def test_near_names_that_the_code_uses_are_allowed(tmp_path: Path) -> None:
    make(tmp_path, Helpers).initialize()


class IndirectHelpers(Trainer):
    """Near names that are read in a loop over names, in a cached property and in a partial method."""

    weight_decays = (0.1,)
    batches_size = 2
    initial_lrs = (0.1,)

    def on_epoch_start(self) -> None:
        for name in ("weight_decays", "num_classes"):
            getattr(self, name)

    @cached_property
    def largest_batch(self) -> int:
        return self.batches_size

    first_rate = partialmethod(lambda self, index: self.initial_lrs[index], 0)


def test_near_names_that_are_read_indirectly_are_allowed() -> None:
    require_sound(IndirectHelpers, Trainer, {})


@pytest.mark.parametrize("name", ["network", "optimizer", "loss", "schedule"])
def test_what_initialize_builds_may_be_announced_as_none(name: str) -> None:
    declare(**{name: None})
    require_sound(type("Own", (Trainer,), {"__module__": __name__}), Trainer, {name: None})


def test_a_compiled_function_without_signature_is_not_checked() -> None:
    declare(configure_optimizers=staticmethod(torch.add))


def test_hyperparameters_of_a_class_body_count_unless_they_are_set(tmp_path: Path) -> None:
    class Short(Trainer):
        num_epochs = 1
        initial_lr = 3e-3

    trainer = make(tmp_path / "class", Short, config=settings())
    assert (trainer.num_epochs, trainer.initial_lr) == (2, 3e-3)
    trainer.run_training()
    assert trainer.logbook.column("lrs")[0] == pytest.approx(3e-3)

    class Shorter(Short):
        initial_lr = 5e-3

    assert make(tmp_path / "derived", Shorter).initial_lr == 5e-3

    class Wrong(Trainer):
        weight_decay = "much"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="weight_decay"):
        make(tmp_path / "wrong", Wrong)


def test_a_resumed_training_keeps_its_settings_whatever_the_class_body_sets(tmp_path: Path) -> None:
    class Short(Trainer):
        num_epochs = 1
        initial_lr = 3e-3

    make(tmp_path, Short, config=settings(num_epochs=3, initial_lr=2e-3)).on_train_start()
    resumed = make(tmp_path, Short, config=TrainConfig())
    assert resumed.num_epochs == 1
    resumed.load_checkpoint(tmp_path / "fold_0" / "checkpoint_latest.safetensors")
    assert (resumed.num_epochs, resumed.initial_lr) == (3, 2e-3)


def test_validation_before_the_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fold 0 is not trained yet; call run_training\(\) or load_checkpoint"):
        make(tmp_path).perform_actual_validation()
