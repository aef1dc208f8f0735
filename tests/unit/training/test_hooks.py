"""The trainer's hooks as an interface: names, signatures, order; and the callbacks that are called after them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segwright.core.errors import ConfigError
from segwright.training.hooks import callbacks
from segwright.training.hooks.callbacks import EVENTS, STEP_EVENTS, CallbackError
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make, settings

SIGNATURES = {
    "initialize": "(self) -> 'None'",
    "build_network_architecture": (
        "(plans: 'Plan', configuration: 'Configuration', num_input_channels: 'int', num_output_channels: 'int', "
        "enable_deep_supervision: 'bool' = True) -> 'nn.Module'"
    ),
    "configure_optimizers": "(self) -> 'Optimizer | tuple[Optimizer, results.Scheduler | None]'",
    "build_loss": "(self) -> 'TrainingLoss'",
    "logits_of": "(output: 'Any') -> 'Any'",
    "get_dataloaders": "(self) -> 'tuple[BatchLoader, BatchLoader]'",
    "run_training": "(self) -> 'None'",
    "on_train_start": "(self) -> 'None'",
    "on_epoch_start": "(self) -> 'None'",
    "on_train_epoch_start": "(self) -> 'None'",
    "train_step": "(self, batch: 'Batch') -> 'dict[str, Tensor]'",
    "on_train_epoch_end": "(self, steps: 'list[dict[str, Tensor]]') -> 'None'",
    "on_validation_epoch_start": "(self) -> 'None'",
    "validation_step": "(self, batch: 'Batch') -> 'ValidationStep'",
    "on_validation_epoch_end": "(self, steps: 'list[ValidationStep]') -> 'None'",
    "on_epoch_end": "(self) -> 'None'",
    "on_train_end": "(self) -> 'None'",
    "perform_actual_validation": "(self) -> 'Scores'",
    "save_checkpoint": "(self, kind: 'checkpoints.Kind') -> 'None'",
    "load_checkpoint": "(self, path: 'Path') -> 'None'",
    "set_deep_supervision_enabled": "(self, enabled: 'bool') -> 'None'",
    "print_to_log_file": (
        "(self, *parts: 'object', also_print_to_console: 'bool' = True, add_timestamp: 'bool' = True) -> 'None'"
    ),
    "plot_network_architecture": "(self) -> 'None'",
}

EPOCH = [
    "on_epoch_start",
    "on_train_epoch_start",
    *["train_step"] * 2,
    "on_train_epoch_end",
    "on_validation_epoch_start",
    "validation_step",
    "on_validation_epoch_end",
    "on_epoch_end",
]
BEGIN = [
    *(
        "run_training",
        "on_train_start",
        "initialize",
        "build_network_architecture",
        "configure_optimizers",
        "build_loss",
    ),
    *("set_deep_supervision_enabled", "get_dataloaders", "plot_network_architecture", "save_checkpoint latest"),
]


def recording(calls: list[str]) -> type[Trainer]:
    """Return a subclass that writes down each hook when it begins and otherwise does what the trainer does."""

    def wrapped(name: str) -> Callable[..., Any]:
        def hook(self: Trainer, *arguments: Any, **named: Any) -> Any:
            calls.append(f"{name} {arguments[0]}" if name == "save_checkpoint" else name)
            return getattr(super(recorder, self), name)(*arguments, **named)

        return hook

    quiet = ("print_to_log_file", "build_network_architecture", "logits_of")
    members: dict[str, Any] = {name: wrapped(name) for name in SIGNATURES if name not in quiet}

    def build_network_architecture(*arguments: Any, **named: Any) -> Any:
        calls.append("build_network_architecture")
        return Trainer.build_network_architecture(*arguments, **named)

    members["build_network_architecture"] = staticmethod(build_network_architecture)
    members["rebuild_network"] = classmethod(lambda cls, **named: None)
    members["__module__"] = __name__
    recorder = type("RecordingTrainer", (Trainer,), members)
    return recorder


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_an_interface(name: str) -> None:
    assert str(inspect.signature(getattr(Trainer, name))) == SIGNATURES[name]


def test_a_subclass_sees_the_documented_order(tmp_path: Path) -> None:
    calls: list[str] = []
    make(tmp_path, recording(calls), config=settings(num_epochs=2)).run_training()
    first, second = [*EPOCH, "save_checkpoint best"], EPOCH
    body = calls[len(BEGIN) :]
    assert calls[: len(BEGIN)] == BEGIN
    assert [call for call in body if call != "save_checkpoint best"] == [*EPOCH, *second, *END]
    assert body[: len(first)] == first


@pytest.mark.parametrize("hook", ["on_train_start", "on_epoch_start", "on_epoch_end", "on_train_end"])
def test_a_hook_without_super_leaves_the_training_as_it_is(tmp_path: Path, hook: str) -> None:
    called: list[int] = []
    silent = type("Silent", (Trainer,), {hook: lambda self: called.append(self.current_epoch), "__module__": __name__})
    plain, trainer = make(tmp_path / "plain"), make(tmp_path / "silent", silent)
    for each in (plain, trainer):
        each.run_training()
    assert called
    assert trainer.logbook.column("train_losses") == plain.logbook.column("train_losses")
    assert trainer.logbook.column("mean_fg_dice") == plain.logbook.column("mean_fg_dice")
    names = [
        sorted(file.name for file in (folder / "fold_0").iterdir())
        for folder in (tmp_path / "plain", tmp_path / "silent")
    ]
    assert names[0] == names[1]


def test_a_hook_without_super_may_set_mode_and_rates(tmp_path: Path) -> None:
    seen: list[tuple[bool, float]] = []

    class Frozen(Trainer):
        def on_train_epoch_start(self) -> None:
            seen.append((self.network.training, self.rates.now()[0]))

        def on_validation_epoch_start(self) -> None:
            seen.append((self.network.training, 0.0))

    trainer = make(tmp_path, Frozen)
    trainer.run_training()
    assert [training for training, _ in seen] == [True, False] * 2
    assert [rate for _, rate in seen[::2]] == [0.01 * trainer.schedule(epoch / 2) for epoch in (0, 1)]


EVENTS_OF_AN_EPOCH = [
    *("on_train_start", "on_epoch_start", "on_train_epoch_start"),
    *["on_train_step_start", "on_train_step_end"] * 2,
    *("on_train_epoch_end", "on_validation_epoch_start", "on_validation_step_start", "on_validation_step_end"),
    *("on_validation_epoch_end", "on_epoch_end", "on_train_end"),
]
END = ["on_train_end", "save_checkpoint final"]


class Watcher:
    """Writes down its events with the epoch in which they came."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in EVENTS:
            raise AttributeError(name)
        return lambda trainer: self.seen.append((name, trainer.current_epoch))


ends: list[int] = []


def at_the_end(trainer: Trainer) -> None:
    ends.append(trainer.current_epoch)


class Failing:
    def on_train_epoch_end(self, trainer: Trainer) -> None:
        raise KeyError("no such metric")


class Misnamed:
    def on_epoch_ends(self, trainer: Trainer) -> None:
        """Never called."""


def test_callbacks_are_called_after_the_hooks(tmp_path: Path) -> None:
    watcher = Watcher()
    make(tmp_path, config=settings(num_epochs=1), callbacks=[watcher]).run_training()
    assert [event for event, _ in watcher.seen] == EVENTS_OF_AN_EPOCH
    assert dict(watcher.seen)["on_epoch_end"] == 1  # the trainer's own hook has ended the epoch before


def undressed(hook: Callable[..., None]) -> Callable[..., None]:
    """A decorator that forgets the name."""

    def called(*arguments: Any) -> None:
        hook(*arguments)

    return called


class Decorated(Trainer):
    @undressed
    def on_epoch_end(self) -> None:
        super().on_epoch_end()


def test_a_decorated_hook_keeps_its_callbacks(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer = make(tmp_path, Decorated, config=settings(num_epochs=1), callbacks=[watcher])
    trainer.on_epoch_start = partial(trainer.on_epoch_start)  # type: ignore[method-assign]
    trainer.run_training()
    assert [event for event, _ in watcher.seen] == EVENTS_OF_AN_EPOCH


def test_a_function_is_called_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    ends.clear()
    reference = f"{__name__}:at_the_end"
    trainer = make(tmp_path, config=settings(callbacks=reference))
    trainer.run_training()
    assert ends == [1, 2]
    assert trainer.config.callbacks == (reference,)


def test_a_failing_callback_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallbackError, match="Failing failed in on_train_epoch_end: KeyError: 'no such metric'"):
        make(tmp_path, config=settings(callbacks=f"{__name__}:Failing")).run_training()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Misnamed", "no event on_epoch_ends; did you mean 'on_epoch_end'"),
        ("EPOCH", "has none of the methods"),
        ("Nobody", "has no 'Nobody'"),
    ],
)
def test_callbacks_that_are_never_called_are_refused_before_the_training(
    tmp_path: Path, name: str, message: str
) -> None:
    trainer = make(tmp_path, config=settings(callbacks=[f"{__name__}:{name}"]))
    with pytest.raises(ConfigError, match=message):
        trainer.initialize()
    assert not trainer.output_folder.exists()


class Ending:
    """Ends the training after an epoch, with weights of its own."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        trainer.clock.end_training()

    def on_train_end(self, trainer: Trainer) -> None:
        with torch.no_grad():
            next(trainer.network.parameters()).fill_(3.0)
        trainer.save_checkpoint("final")


@pytest.mark.parametrize("given", [Ending(), Ending, f"{__name__}:Ending"])
def test_a_callback_may_end_the_training_and_change_what_is_saved(tmp_path: Path, given: Any) -> None:
    trainer = make(tmp_path, callbacks=[given])
    trainer.run_training()
    assert (trainer.current_epoch, trainer.is_finished) == (1, True)
    first, *_ = (name for name, _ in trainer.network.named_parameters())
    assert bool((load_file(trainer.output_folder / "checkpoint_final.safetensors")[first] == 3.0).all())


def test_a_trainer_may_set_its_callbacks(tmp_path: Path) -> None:
    ends.clear()

    class Own(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.callbacks = [at_the_end]

    make(tmp_path, Own).run_training()
    assert ends == [1, 2]


class Calm(Trainer):
    """Mirrors from the second epoch on."""

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        recipe = self.recipe if self.current_epoch else self.recipe.without("mirror")
        self.dataloader_train.recipe = recipe


def test_the_augmentation_of_an_epoch_may_be_changed(tmp_path: Path) -> None:
    plain, calm = make(tmp_path / "plain"), make(tmp_path / "calm", Calm)
    plain.run_training()
    calm.on_train_start()
    batches = []
    for epoch in (0, 1):
        calm.current_epoch = epoch
        calm.on_epoch_start()
        pair = [each.dataloader_train.batch(epoch, 0)["data"] for each in (plain, calm)]
        batches.append(torch.equal(*pair))
    assert batches == [False, True]


def test_events_are_hooks() -> None:
    assert set(EVENTS) - set(STEP_EVENTS) < set(SIGNATURES)
    assert set(EVENTS_OF_AN_EPOCH) == set(EVENTS)
    assert callbacks.PLAIN_EVENT in EVENTS
