"""Learning rates by nnU-Net's formulas."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from segwright.compat.nnunet.names.schedules import (
    Lin_incr_LRScheduler,
    Lin_incr_offset_LRScheduler,
    PolyLRScheduler,
    PolyLRScheduler_offset,
)


@pytest.fixture
def optimizer() -> SGD:
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    return SGD([{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 2.0}], lr=3.0)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.01), (1, 0.009991), (500, 0.0053589), (999, 1.9953e-5)])
def test_poly(optimizer: SGD, epoch: int, rate: float) -> None:
    scheduler = PolyLRScheduler(optimizer, 0.01, 1000)
    scheduler.step(epoch)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate] * 2, rel=1e-4)
    assert scheduler.get_last_lr() == pytest.approx([rate] * 2, rel=1e-4)


def test_poly_counts_by_itself(optimizer: SGD) -> None:
    scheduler = PolyLRScheduler(optimizer, 1.0, 4, exponent=1)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(5):
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_state_is_restored(optimizer: SGD) -> None:
    scheduler = PolyLRScheduler(optimizer, 1.0, 4, exponent=1)
    scheduler.step()
    other = PolyLRScheduler(optimizer, 7.0, 9)
    other.load_state_dict(scheduler.state_dict())
    other.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_warmup_and_offset(optimizer: SGD) -> None:
    warmup = Lin_incr_LRScheduler(optimizer, 0.01, 50)
    warmup.step(9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 50 * 10)
    later = Lin_incr_offset_LRScheduler(optimizer, 0.01, 50, 10)
    later.step(20)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0022)
    decay = PolyLRScheduler_offset(optimizer, 0.01, 1000, 50)
    decay.step(50)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    decay.step(525)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**0.9)
