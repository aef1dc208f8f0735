"""Exponential moving average of the weights, which replaces them in validation and in saved models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segwright.core.errors import ModelError

PREFIX: Final = "ema_weights/"
"""Prefix of the averaged tensors' names in a checkpoint."""

COUNT: Final = "ema_steps"
"""Key of the number of updates in a checkpoint."""

WARMUP_STEPS: Final = 9.0
"""Update t (from 0) keeps at most t / (t + 9) of the average, so that the initial weights lose influence quickly."""


class WeightAverage:
    """The exponential moving average of a network's parameters and buffers.

    An update is `average + (1 - d) * (weights - average)` with d = min(decay, t / (t + 9)) at update t from 0. Integer
    buffers are copied. A step that the optimiser skipped because its gradient was not finite does not change the
    average; this is decided on the device.

    Args:
        network: on its device; its weights are not changed.
        decay: share of the average that an update keeps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self._average = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        device = next(iter(self._weights.values())).device
        self._steps = torch.zeros((), device=device)
        self._decay = torch.full_like(self._steps, decay)

    @torch.no_grad()
    def update(self, has_stepped: Tensor) -> None:
        """Update the average if the bool scalar `has_stepped` is true; the host does not wait for it."""
        keep = torch.minimum(self._decay, self._steps / (self._steps + WARMUP_STEPS))
        for name, average in self._average.items():
            weights = self._weights[name].detach()
            moved = (
                torch.lerp(average, weights, (1 - keep).to(average.dtype)) if average.is_floating_point() else weights
            )
            # torch.where, since a product with 0 would keep a NaN that a skipped step left in a running statistic.
            average.copy_(torch.where(has_stepped, moved, average))
        self._steps += has_stepped

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Update the average as a post-step hook; fused optimisers set `found_inf` where they skipped the step."""
        skipped = vars(optimizer).get("found_inf")
        stepped = torch.ones_like(self._steps) if skipped is None else 1 - skipped.reshape(())
        self.update(stepped > 0)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the network's weights and the average in place."""
        for name, average in self._average.items():
            weights = self._weights[name].detach()
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        """Copy the average into the network."""
        for name, average in self._average.items():
            self._weights[name].detach().copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to resume from."""
        return {COUNT: self._steps, **{f"{PREFIX}{name}": tensor for name, tensor in self._average.items()}}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the average from `tensors()`, or from the network's weights if there are none.

        Raises:
            ModelError: they belong to another network.
        """
        if not tensors:
            for name, average in self._average.items():
                average.copy_(self._weights[name].detach())
            self._steps.zero_()
            return
        own = self.tensors()
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: own[name].shape for name in own}:
            raise ModelError("the averaged weights do not fit the network; start a new training")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def attach(network: nn.Module, optimizer: Optimizer, decay: float | None) -> WeightAverage | None:
    """Return an average that the optimiser updates after every step; None without a decay."""
    if decay is None:
        return None
    average = WeightAverage(network, decay)
    optimizer.register_step_post_hook(average.after_step)
    return average


@contextmanager
def applied(average: WeightAverage | None) -> Iterator[None]:
    """Use the averaged weights in the network during the block; do nothing without an average."""
    if average is None:
        yield
        return
    average.swap()
    try:
        yield
    finally:
        average.swap()


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors saved beside the weights into the optimiser's and the average's."""
    average = {name: tensor for name, tensor in tensors.items() if name == COUNT or name.startswith(PREFIX)}
    return {name: tensor for name, tensor in tensors.items() if name not in average}, average
