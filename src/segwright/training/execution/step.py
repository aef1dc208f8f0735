"""Compute a training step: loss and gradients of a batch, then the update of the weights.

Array letters: B samples, C channels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from segwright.core.device import autocast
from segwright.networks.logits import LogitsOf
from segwright.training.distributed.context import SINGLE
from segwright.training.hooks.results import loss_of
from segwright.training.losses.builtin import Outputs, TrainingLoss
from segwright.training.monitoring.divergence import check_loss
from segwright.training.network_setup import check_outputs
from segwright.training.optim.optimizers import update

LossFunction = Callable[[Tensor, Outputs], Tensor]
"""Returns the loss of data (B, C, *S) and targets, to be differentiated."""

BackwardOf = Callable[[nn.Module], Callable[[Tensor], None]]
"""Returns what computes a network's gradients of a loss, see `DistributedContext.backward_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """What a step uses and changes. Callbacks may exchange each of them between two steps."""

    network: nn.Module
    loss: TrainingLoss
    optimizer: Optimizer
    scaler: torch.amp.GradScaler | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What stays the same in every step of a training.

    Attributes:
        device: of the network.
        precision: as in the settings.
        clip_norm: maximum norm of the gradient.
        backward_of: of the processes that share the training.
    """

    device: torch.device
    precision: str
    clip_norm: float
    backward_of: BackwardOf = SINGLE.backward_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBatchCheck:
    """Checks output and loss of the first batch of a training.

    Attributes:
        cases: of the batch.
        logits_of: finds the logits in what the network returns.
        num_heads: output channels that the labels need.
    """

    cases: Sequence[str]
    logits_of: LogitsOf
    num_heads: int

    def check_output(self, output: Any, data: Tensor, target: Outputs) -> None:
        """Check number and shapes of the outputs.

        Raises:
            ModelError: one is wrong.
        """
        check_outputs(self.logits_of(output), target, data, self.num_heads)

    def check_loss(self, loss: Tensor, output: Any, data: Tensor) -> None:
        """Check that the loss is finite and depends on the weights.

        Raises:
            ModelError: it does not.
        """
        check_loss(loss, self.logits_of(output), data, self.cases)


def plain_loss(parts: StepParts, settings: StepSettings, check: FirstBatchCheck | None = None) -> LossFunction:
    """Return the function that runs network and loss as they are."""

    def loss_of_batch(data: Tensor, target: Outputs) -> Tensor:
        with autocast(settings.device, settings.precision):
            output = parts.network(data)
        if check is not None:
            check.check_output(output, data, target)
        loss = loss_of(parts.loss, output, target)
        if check is not None:
            check.check_loss(loss, output, data)
        return loss

    return loss_of_batch


def compute_gradients(
    function: LossFunction,
    parts: StepParts,
    data: Tensor,
    target: Outputs,
    *,
    backward_of: BackwardOf = SINGLE.backward_of,
) -> Tensor:
    """Replace the gradients of the network by those of a batch, and return the loss, detached."""
    parts.optimizer.zero_grad(set_to_none=True)
    parts.network.zero_grad(set_to_none=True)  # also of parameters in no group of the optimizer
    backward = backward_of(parts.network)
    loss = function(data, target)
    backward(loss if parts.scaler is None else parts.scaler.scale(loss))
    return loss.detach()


def update_weights(loss: Tensor, parts: StepParts, settings: StepSettings) -> Tensor:
    """Update the weights by their gradients, and return the loss; NaN if the step was skipped.

    Nothing here waits for the device if the optimiser is fused.
    """
    norm = update(parts.optimizer, parts.network, clip_norm=settings.clip_norm, scaler=parts.scaler)
    return torch.where(torch.isfinite(norm), loss, torch.nan)
