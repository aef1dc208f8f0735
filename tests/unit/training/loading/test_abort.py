"""An error in a prefetching thread aborts the running step and leaves the network unchanged."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import DatasetError
from segwright.training.loading.abort import StepAborter

ERROR = DatasetError("case x: gone")


class FailedMeanwhile(torch.autograd.Function):
    """Aborts the step from another thread while the forward or the backward pass runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, aborter: StepAborter, when: str) -> Tensor:
        ctx.aborter, ctx.when = aborter, when
        if when == "forward":
            abort_elsewhere(aborter)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.when == "backward":
            abort_elsewhere(ctx.aborter)
        return grad, None, None


class Network(nn.Module):
    def __init__(self, when: str) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)
        self.when = when
        self.aborter = StepAborter(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(FailedMeanwhile.apply(self.first(x), self.aborter, self.when))
        return out


def abort_elsewhere(aborter: StepAborter) -> None:
    thread = threading.Thread(target=aborter.abort, args=(ERROR,))
    thread.start()
    thread.join()


def step(network: Network) -> Tensor:
    network.zero_grad()
    loss: Tensor = network(torch.ones(1, 1, 8, 8)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_the_running_pass_ends_at_its_next_layer(when: str) -> None:
    network = Network(when)
    with pytest.raises(DatasetError, match="case x: gone"), network.aborter:
        step(network)
    assert (network.last.weight.grad is None) == (when == "forward")
    assert network.first.weight.grad is None or when == "backward"
    network.when = "never"
    step(network)


def test_hooks_are_removed_after_the_block() -> None:
    network = Network("never")
    with network.aborter as aborter:
        aborter.abort(ERROR)
    step(network)
