"""The pseudo Dice: counts against a plain loop, ignored voxels, classes that do not occur."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from segwright.data.labels import Labels
from segwright.training.validation.online import ValidationStep, confusion, pseudo_dice

PLAIN = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
REGIONS = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2], "b": 2, "ignore": 3}, "regions_class_order": [1, 2]}
)
SHAPE = (2, 1, 3, 4, 5)


def test_label_counts_equal_a_plain_count() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 3, 3, 4, 5, generator=generator)
    target = torch.randint(0, 4, SHAPE, generator=generator).short()
    predicted = output.argmax(1)[:, None][target != 3]
    truth = target[target != 3]
    tp, fp, fn = confusion(output, target, PLAIN)
    for index, label in enumerate((1, 2)):
        assert tp[index] == ((predicted == label) & (truth == label)).sum()
        assert fp[index] == ((predicted == label) & (truth != label)).sum()
        assert fn[index] == ((predicted != label) & (truth == label)).sum()


def test_region_counts_equal_a_plain_count() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 2, 3, 4, 5, generator=generator)
    target = torch.rand(2, 3, 3, 4, 5, generator=generator) < 0.4
    tp, fp, fn = confusion(output, target, REGIONS)
    for index in range(2):
        predicted, truth = output[:, index][~target[:, 2]] > 0, target[:, index][~target[:, 2]]
        assert [tp[index], fp[index], fn[index]] == [
            (predicted & truth).sum(),
            (predicted & ~truth).sum(),
            (~predicted & truth).sum(),
        ]


def step(loss: float, tp: list[int], fp: list[int], fn: list[int]) -> ValidationStep:
    counts = [torch.tensor(values) for values in (tp, fp, fn)]
    return {"loss": torch.tensor(loss), "tp_hard": counts[0], "fp_hard": counts[1], "fn_hard": counts[2]}


def test_dice_is_taken_over_all_steps_together() -> None:
    loss, dice, true_voxels = pseudo_dice([step(1.0, [1, 0], [1, 0], [0, 0]), step(2.0, [2, 0], [0, 0], [1, 0])])
    assert loss == pytest.approx(1.5)
    assert dice[0] == pytest.approx(6 / 8)
    assert math.isnan(dice[1])
    assert true_voxels == [4, 0]


class WithoutFloat64(torch.Tensor):
    """A tensor of a device such as MPS that has no float64."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return arguments[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, arguments, named or {})
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return found


def test_the_pseudo_dice_needs_no_float64_of_the_device() -> None:
    counts = {key: torch.tensor([3, 0]).as_subclass(WithoutFloat64) for key in ("tp_hard", "fp_hard", "fn_hard")}
    loss, dice, true_voxels = pseudo_dice([ValidationStep(loss=torch.tensor(0.5), **counts)])  # type: ignore[typeddict-item]
    assert (loss, dice[0], true_voxels) == (0.5, 0.5, [6, 0])
