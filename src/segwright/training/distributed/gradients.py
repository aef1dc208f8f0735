"""Average gradients over ranks with torch's `DistributedDataParallel` (DDP), during the backward pass.

DDP gets the loss instead of the network: the forward pass stays that of the plain network, compiled or not, and DDP
finds the parameters that the loss does not depend on, such as those of an output with weight 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from segwright.core.errors import ModelError


@final
class GradientMean:
    """Computes the gradients of a network's trained parameters, each of them the mean over ranks.

    A parameter without a gradient on some ranks counts as 0 there. Without one on any rank it keeps none, and the
    optimiser skips it. All ranks must make this object together, before a forward pass: DDP writes to the
    parameters, which autograd refuses between forward and backward pass (before torch 2.6 there is no option).

    Args:
        network: on its device.
        gather: returns the values of all ranks.

    Raises:
        ModelError: the ranks train different parameters.
    """

    def __init__(self, network: nn.Module, gather: Callable[[list[str]], list[list[str]]]) -> None:
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        _require_equal(gather(names))
        self._parameters = trained_parameters(network)
        self._ddp = nn.parallel.DistributedDataParallel(
            _PassLoss(self._parameters), find_unused_parameters=True, gradient_as_bucket_view=True
        )

    def fits(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Return whether it was made for these parameters: a callback may freeze, unfreeze or replace some."""
        return len(parameters) == len(self._parameters) and all(map(operator.is_, parameters, self._parameters))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss (scalar); once for each forward pass, on all ranks."""
        torch.autograd.backward(self._ddp(loss))


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen, in the network's order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class _PassLoss(nn.Module):
    """Owns parameters and returns the loss it is given: what DDP needs to average their gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        """Return the loss."""
        return loss


def _require_equal(names: Sequence[Sequence[str]]) -> None:
    """Check that all ranks train the parameters that rank 0 does, given the names of each rank's.

    Raises:
        ModelError: they do not.
    """
    for rank, own in enumerate(names):
        different = sorted(set(own) ^ set(names[0]))
        if different:
            trains, freezes = (rank, 0) if different[0] in own else (0, rank)
            raise ModelError(
                f"rank {trains} trains the parameter '{different[0]}' and rank {freezes} does not have or freezes it; "
                "all ranks must train the same parameters: build and freeze them independently of the rank"
            )
