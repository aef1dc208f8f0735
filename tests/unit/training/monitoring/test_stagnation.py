"""Warnings about classes whose pseudo Dice stays at 0: when they come and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright.training.monitoring.stagnation import epochs_at_zero, expected_share, patience
from segwright.training.trainer import Trainer
from segwright.training.validation.online import ValidationStep
from tests.unit.training.tiny_task import TinyStore, make, settings


def rows(*dices: list[float | None]) -> list[dict[str, Any]]:
    return [{"dice_per_class_or_region": list(values)} for values in dices]


def test_epochs_at_zero_count_back_to_the_last_dice_above_0() -> None:
    history = rows([0.1, 0.0], [0.0, None], [0.3, 0.0], [0.0, None])
    assert [epochs_at_zero(history, index) for index in (0, 1)] == [1, 4]
    assert epochs_at_zero([], 0) == 0


@pytest.mark.parametrize(("epochs", "expected"), [(1000, 20), (100, 20), (50, 10), (3, 2), (None, 5)])
def test_patience_depends_on_the_number_of_epochs(epochs: int | None, expected: int) -> None:
    assert patience(epochs) == expected


def test_the_share_of_samples_agrees_with_sampling(tmp_path: Path) -> None:
    trainer = make(tmp_path, cases=RareStore(), config=settings(batch_size=50, oversample_foreground_percent=1.0))
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    locations = [trainer.cases.load(name).class_locations for name in trainer.split.train]
    expected = expected_share(2, locations, 1.0)
    assert expected == pytest.approx(1 / 6)
    drawn = [sample for epoch in range(20) for sample in loader.draw(epoch, 0)]
    in_case = np.mean([sample.identifier == "case_1" for sample in drawn])
    assert in_case == pytest.approx(1 / 3, abs=0.06)  # half of which go to the rare class


class RareStore(TinyStore):
    """The dark box is in case 1 alone."""

    def load(self, identifier: str) -> Any:
        case = super().load(identifier)
        if identifier != "case_1":
            case.label[case.label == 2] = 0
            case.class_locations[2] = np.zeros((0, 3), dtype=np.int64)
        return case


class BlindTrainer(Trainer):
    """Never finds the second class."""

    def on_validation_epoch_end(self, steps: list[ValidationStep]) -> None:
        for step in steps:
            step["tp_hard"] = step["tp_hard"].clone()
            step["tp_hard"][0], step["tp_hard"][1] = 5, 0
        super().on_validation_epoch_end(steps)


def test_a_class_that_is_not_learned_gives_a_warning_at_intervals(tmp_path: Path) -> None:
    config = settings(num_epochs=5, num_iterations_per_epoch=1)
    trainer = make(tmp_path, BlindTrainer, cases=RareStore(), config=config)
    trainer.run_training()
    log = (trainer.output_folder / "training.log").read_text()
    warnings = [line.split("warning: ")[1] for line in log.splitlines() if "warning: " in line]
    assert [line.split(";")[0] for line in warnings] == [
        f"class 'dark': pseudo Dice has been 0 for {epochs} epochs" for epochs in (2, 4)
    ]
    assert "1 of 3 training cases contain it and about 5.5% of the samples are centred on it" in warnings[0]
