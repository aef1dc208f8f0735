"""Learning rates by a schedule and by a scheduler of one's own, step for step and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, lr_scheduler

from segwright.core.errors import ConfigError, ModelError
from segwright.training.optim.rates import LearningRates
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make, settings

RATES = (1e-4, 1e-3)


class TwoGroups(Trainer):
    """AdamW with two groups, and a scheduler that a test chooses."""

    make_scheduler: Any = None

    def configure_optimizers(self) -> Any:
        *body, last = self.network.parameters()
        groups = [{"params": body, "lr": RATES[0]}, {"params": [last], "lr": RATES[1]}]
        optimizer = AdamW(groups)
        return optimizer if self.make_scheduler is None else (optimizer, type(self).make_scheduler(optimizer))

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        self.__dict__.setdefault("seen", []).append([group["lr"] for group in self.optimizer.param_groups])
        return super().train_step(batch)


def trainer_with(make_scheduler: Any, **members: Any) -> type[Trainer]:
    scheduler = None if make_scheduler is None else staticmethod(make_scheduler)
    return type("Own", (TwoGroups,), {"make_scheduler": scheduler, "__module__": __name__, **members})


def cosine(optimizer: Any) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)


SCHEDULERS = {
    "cosine": cosine,
    "steps": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.1),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.5)], [2]
    ),
}


def expected_rates(make_scheduler: Any, epochs: int, steps: int, *, per_step: bool = False) -> list[list[float]]:
    optimizer = AdamW([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in RATES])
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(epochs):
        for _ in range(steps):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # torch's SequentialLR gives it
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_ones_own_decides_and_resumes_exactly(tmp_path: Path, name: str) -> None:
    cls = trainer_with(SCHEDULERS[name])
    config = settings(num_epochs=4)
    straight = make(tmp_path / "straight", cls, config=config)
    straight.run_training()
    assert vars(straight)["seen"] == expected_rates(SCHEDULERS[name], 4, config.num_iterations_per_epoch)
    assert straight.logbook.column("lrs") == [rates[0] for rates in vars(straight)["seen"][::2]]

    broken = make(tmp_path / "broken", cls, config=config)
    broken.on_train_start()
    for _ in range(2):
        broken.on_epoch_start()
        broken.on_train_epoch_start()
        broken._run_training_steps()
        broken.on_train_epoch_end(broken.epoch_outputs)
        broken.on_validation_epoch_start()
        with torch.no_grad():
            broken.on_validation_epoch_end(broken._run_validation_steps())
        broken.on_epoch_end()
    broken.save_checkpoint("latest")
    resumed = make(tmp_path / "broken", cls, config=config)
    resumed.load_checkpoint(tmp_path / "broken" / "fold_0" / "checkpoint_latest.safetensors")
    resumed.run_training()
    assert vars(broken)["seen"] + vars(resumed)["seen"] == vars(straight)["seen"]
    for ours, theirs in zip(resumed.network.parameters(), straight.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_scheduler_of_steps_is_stepped_after_each(tmp_path: Path) -> None:
    def one_cycle(optimizer: Any) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, max_lr=list(RATES), total_steps=8)

    trainer = make(tmp_path, trainer_with(one_cycle, scheduler_steps="step"), config=settings(num_epochs=3))
    trainer.run_training()
    assert vars(trainer)["seen"] == expected_rates(one_cycle, 3, 2, per_step=True)


def test_a_plateau_scheduler_gets_the_validation_loss(tmp_path: Path) -> None:
    seen: list[float] = []

    class Plateau(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: int | None = None) -> None:
            seen.append(float(metrics))
            super().step(metrics)

    trainer = make(
        tmp_path, trainer_with(lambda optimizer: Plateau(optimizer, patience=0)), config=settings(num_epochs=3)
    )
    trainer.run_training()
    assert seen == trainer.logbook.column("val_losses")


def test_an_optimizer_alone_keeps_its_rates_times_the_schedule(tmp_path: Path) -> None:
    trainer = make(tmp_path, trainer_with(None), config=settings(num_epochs=2, schedule="cosine"))
    trainer.run_training()
    factors = [trainer.schedule(epoch / 2) for epoch in (0, 0, 1, 1)]
    assert vars(trainer)["seen"] == [[rate * factor for rate in RATES] for factor in factors]
    assert any(
        "learning rates 0.0001, 0.001 of configure_optimizers, times the schedule" in note for note in trainer.notes
    )


def test_a_schedule_beside_a_scheduler_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, trainer_with(cosine), config=settings(schedule="cosine"))
    with pytest.raises(ConfigError, match="schedule = cosine is set, but configure_optimizers returned a CosineAnn"):
        trainer.initialize()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda self: (SGD(self.network.parameters(), lr=1), "poly"), "returned a str as scheduler, which has no step"),
        (lambda self: [SGD(self.network.parameters(), lr=1)] * 3, r"returned list \(SGD, SGD, SGD\); it must return"),
        (lambda self: None, r"configure_optimizers returned NoneType; it must return a torch.*, or \(optimizer, sched"),
        (
            lambda self: (SGD(self.network.parameters(), lr=1), lr_scheduler.StepLR),
            "the class StepLR as scheduler, ",
        ),
        (
            lambda self: (SGD(self.network.parameters(), lr=1), cosine(SGD(self.network.parameters(), lr=1))),
            "returned a CosineAnnealingLR that was made for another optimizer; return .* of that optimizer",
        ),
        (lambda self: SGD([torch.zeros(1)], lr=1), "has no parameter of the network; make it from self.network.param"),
    ],
)
def test_other_results_are_refused(tmp_path: Path, result: Any, words: str) -> None:
    cls = type("Wrong", (Trainer,), {"configure_optimizers": result})
    with pytest.raises((ConfigError, ModelError), match=words):
        make(tmp_path, cls).initialize()


@pytest.mark.parametrize(
    ("make_scheduler", "members", "words"),
    [
        (cosine, {"scheduler_steps": "batch"}, "scheduler_steps = 'batch': expected 'epoch' or 'step'"),
        (
            lr_scheduler.ReduceLROnPlateau,
            {"scheduler_steps": "step"},
            "needs the validation loss.*set scheduler_",
        ),
        (
            lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=3),
            {"scheduler_steps": "step"},
            r"total_steps = 3.*stepped 4 times; make it with total_steps=num_epochs \* num_iterations_per_epoch",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_stepped_so_is_refused(
    tmp_path: Path, make_scheduler: Any, members: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, trainer_with(make_scheduler, **members)).initialize()


def test_a_scheduler_that_fails_is_named(tmp_path: Path) -> None:
    class Short(lr_scheduler.StepLR):
        def step(self, epoch: int | None = None) -> None:
            if self.last_epoch == 1:
                raise ValueError("no more steps")
            super().step()

    trainer = make(tmp_path, trainer_with(lambda optimizer: Short(optimizer, 1)))
    with pytest.raises(ConfigError, match="Short.step of the scheduler .* failed after an epoch: ValueError: no more"):
        trainer.run_training()


def test_parameters_without_a_group_are_told(tmp_path: Path) -> None:
    class Partial(Trainer):
        def configure_optimizers(self) -> Any:
            _, *others = [*self.network.parameters()]
            others[0].requires_grad_(False)
            return SGD(others[1:], lr=1e-3)

    trainer = make(tmp_path, Partial)
    trainer.initialize()
    first, *names = (name for name, _ in trainer.network.named_parameters())
    words = f"1 of {len(names)} parameters of the network are in no group"
    assert any(words in note and first in note for note in trainer.notes)
    plain = make(tmp_path)
    plain.initialize()
    assert not any("in no group" in note for note in plain.notes)


def test_no_scheduler_may_be_returned_as_none(tmp_path: Path) -> None:
    cls = type("Alone", (Trainer,), {"configure_optimizers": lambda self: (SGD(self.network.parameters(), lr=1), None)})
    trainer = make(tmp_path, cls)
    trainer.initialize()
    assert trainer.rates.scheduler is None


def test_state_of_another_optimizer_or_scheduler_is_refused() -> None:
    one, two = (SGD([{"params": [torch.zeros(1)]} for _ in range(n)], lr=1) for n in (1, 2))
    with pytest.raises(ModelError, match="has 1 parameter groups, the optimizer 2"):
        LearningRates(two).restore(LearningRates(one).state())
    with pytest.raises(ModelError, match="differ in whether they have a scheduler"):
        LearningRates(one).restore(LearningRates(one, cosine(one)).state())


def test_a_state_that_no_checkpoint_can_hold_is_named() -> None:
    optimizer = SGD([torch.zeros(1)], lr=1)
    scheduler = cosine(optimizer)
    scheduler.helper = print
    with pytest.raises(ConfigError, match=r"CosineAnnealingLR.state_dict\(\)\['helper'\] is a builtin_function"):
        LearningRates(optimizer, scheduler).state()
