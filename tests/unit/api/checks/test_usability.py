"""Models that are of no use say so, and how long to train instead."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from segwright.api.checks.usability import find_shortcoming


def fold(place: Path, *, step: int, elapsed_s: float = 10.0, **config: Any) -> Path:
    place.mkdir()
    document = {"step": step, "elapsed_s": elapsed_s, "config": config}
    (place / "checkpoint_final.json").write_text(json.dumps(document))
    return place


@pytest.mark.parametrize(
    ("step", "dice", "message"),
    [
        (1, 0.3, r"not usable \(1 training step\); delete its folds and train longer, at least 1000 steps: about "),
        (9, 0.0, r"not usable \(mean Dice 0.0000, 9 training steps\)"),
        (400, 0.0, r"not usable \(mean Dice 0.0000, 400 training steps\)"),
        (5000, 0.001, r"not usable \(mean Dice 0.0010\); check the labels with 'segwright check'"),
    ],
)
def test_what_is_not_usable_says_why_and_what_to_do(tmp_path: Path, step: int, dice: float, message: str) -> None:
    assert re.search(message, find_shortcoming([fold(tmp_path / "fold_0", step=step)], dice))


@pytest.mark.parametrize(("step", "dice"), [(10, 0.5), (400, 0.02), (5000, math.nan)])
def test_a_usable_model_says_nothing(tmp_path: Path, step: int, dice: float) -> None:
    assert find_shortcoming([fold(tmp_path / "fold_0", step=step)], dice) == ""


def test_the_shortest_fold_counts_and_its_time_gives_the_budget(tmp_path: Path) -> None:
    folds = [fold(tmp_path / "fold_0", step=300), fold(tmp_path / "fold_1", step=2, elapsed_s=4)]
    assert "(2 training steps)" in find_shortcoming(folds, 0.5)
    assert "about --budget 34m on this machine" in find_shortcoming(folds, 0.5)
    assert "about --budget 3h on" in find_shortcoming([fold(tmp_path / "fold_2", step=1, elapsed_s=9.5)], 0.5)


def test_a_few_steps_are_enough_after_pretraining(tmp_path: Path) -> None:
    assert find_shortcoming([fold(tmp_path / "fold_0", step=2, pretrained="model")], 0.5) == ""
    assert "mean Dice 0.0000" in find_shortcoming([fold(tmp_path / "fold_1", step=2, pretrained="model")], 0.0)


@pytest.mark.parametrize("text", ["{", "[]", '{"step": "x", "elapsed_s": 1, "config": {}}', '{"config": null}'])
def test_a_fold_that_does_not_say_how_it_was_trained_is_judged_by_its_dice(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint_final.json").write_text(text)
    assert find_shortcoming([tmp_path], 0.5) == ""
    assert "not usable (mean Dice 0.0000)" in find_shortcoming([tmp_path], 0.0)
