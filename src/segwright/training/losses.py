"""Losses: soft Dice with cross entropy (labels) or binary cross entropy (regions), deep supervision, ignored voxels.

Array letters: B samples, C channels (heads), S spatial axes. A loss of one resolution is any
`fn(output (B, C, *S), target, *, labels) -> scalar`; targets are as `training.targets` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from segwright.core.errors import ConfigError
from segwright.core.registry import Registry, import_reference
from segwright.data.labels import Labels

SMOOTH = 1e-5
SMALLEST_DENOMINATOR = 1e-8
"""Of the Dice loss; nnU-Net 2.8.1 behaviour, spec B 1.10."""

HIDDEN_LOGIT = 30.0
"""Logit of the right answer put in for an ignored voxel before a loss that does not know of ignored voxels."""

Outputs = Tensor | Sequence[Tensor]
"""Logits, or logits of several resolutions, the highest first."""

TrainingLoss = Callable[[Outputs, Outputs], Tensor]
"""What a trainer calls: (outputs, targets) to a scalar."""


Pool = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes of a training, the gradient going to the own part (`distributed.Ranks.pool`)."""


def alone(part: Tensor) -> Tensor:
    """Return what one process has: the pool of a training in one process."""
    return part


class ResolutionLoss(Protocol):
    """The contract of a loss."""

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return a scalar for logits (B, C, *S) and their target (B, 1, *S) or (B, regions, *S)."""
        ...


class LossFactory(Protocol):
    """What a registered name stands for: a loss for labels and a kind of Dice."""

    def __call__(self, *, batch_dice: bool, pool: Pool = alone) -> ResolutionLoss:
        """Return the loss, its value that of the batches of all processes together."""
        ...


def build_loss(
    labels: Labels,
    *,
    batch_dice: bool,
    num_outputs: int | None = None,
    reference: str | None = None,
    pool: Pool = alone,
) -> TrainingLoss:
    """Return the loss of a run.

    Args:
        labels: decide between labels and regions and name the ignore label.
        batch_dice: sum over the batch before the Dice is taken.
        num_outputs: resolutions the network gives; None: one tensor.
        reference: a registered name or `module:attr`; None: `dice_bce` for regions, else `dice_ce`.
        pool: sums over processes; a loss from outside is averaged over their samples.

    Raises:
        ConfigError: the loss is unknown, or does not suit labels or regions.
    """
    name = reference or ("dice_bce" if labels.has_regions else "dice_ce")
    loss: ResolutionLoss
    if ":" in name:
        loss = import_reference(name, kind="loss")
        if not callable(loss):
            raise ConfigError(f"loss '{name}' is not callable; name a function fn(output, target, *, labels)")
        if labels.ignore_label is not None:
            loss = partial(_hiding_ignored, loss)
        loss = loss if pool is alone else partial(_averaged, loss, pool)
    else:
        loss = LOSSES.get(name)(batch_dice=batch_dice, pool=pool)
        if (name == "dice_bce") != labels.has_regions:
            kind = "regions" if labels.has_regions else "labels"
            raise ConfigError(f"loss '{name}' does not suit {kind}; leave the loss to its default")
    one_scale: TrainingLoss = partial(_one_resolution, loss, labels)
    if num_outputs is None:
        return one_scale
    return partial(_deeply_supervised, one_scale, deep_supervision_weights(num_outputs))


def deep_supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """Return the weight of each output, highest resolution first: halved each time, the last 0, sum 1 (spec B 1.10).

    >>> [round(weight, 4) for weight in deep_supervision_weights(5)]
    [0.5333, 0.2667, 0.1333, 0.0667, 0.0]
    """
    if num_outputs == 1:
        return (1.0,)
    weights = [0.5**index for index in range(num_outputs - 1)] + [0.0]
    return tuple(weight / sum(weights) for weight in weights)


def dice_ce(output: Tensor, target: Tensor, *, labels: Labels, batch_dice: bool, pool: Pool = alone) -> Tensor:
    """Return cross entropy minus the mean soft Dice of the foreground labels (nnU-Net 2.8.1 behaviour, spec B 1.10).

    Both share one log-softmax. Ignored voxels count in neither; with none annotated the cross entropy is 0.

    Args:
        output: logits (B, C, *S).
        target: label values (B, 1, *S), any integer type.
        labels: name the ignore label.
        batch_dice: sum over the batch before the Dice is taken.
        pool: sums over processes.
    """
    log_p = F.log_softmax(_widened(output), dim=1)
    index = target.long()
    ignore = labels.ignore_label
    mask = None if ignore is None else index != ignore
    if mask is None:
        cross_entropy = _weighted(F.nll_loss(log_p, index[:, 0]), len(index), pool)
    else:
        index = index.masked_fill(~mask, 0)
        log_p_target = log_p.gather(1, index).masked_fill(~mask, 0.0)
        cross_entropy = -pool(log_p_target.sum()) / pool(mask.sum()).clamp_min(1)
    p = log_p[:, 1:].exp()
    one_hot = torch.zeros_like(log_p).scatter_(1, index, 1.0)[:, 1:]
    return cross_entropy + dice(p, one_hot, batch_dice=batch_dice, mask=mask, pool=pool)


def dice_bce(output: Tensor, target: Tensor, *, labels: Labels, batch_dice: bool, pool: Pool = alone) -> Tensor:
    """Return binary cross entropy minus the mean soft Dice of the regions (spec B 1.10).

    With an ignore label the cross entropy is the mean over annotated voxels *and regions*, so that it weighs the same
    as without one. nnU-Net 2.8.1 divides by the voxels alone and so multiplies it by the number of regions (spec B,
    S11): a deviation on purpose.

    Args:
        output: logits (B, regions, *S).
        target: bool (B, regions, *S), with an ignore label one more channel, true where nobody annotated.
        labels: tell whether there is an ignore label.
        batch_dice: sum over the batch before the Dice is taken.
        pool: sums over processes.
    """
    logits = _widened(output)
    mask = None if labels.ignore_label is None else ~target[:, -1:].bool()
    truth = target[:, : logits.shape[1]].to(logits.dtype)
    if mask is None:
        cross_entropy = _weighted(F.binary_cross_entropy_with_logits(logits, truth), len(logits), pool)
    else:
        voxelwise = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").masked_fill(~mask, 0.0)
        cross_entropy = pool(voxelwise.sum()) / (logits.shape[1] * pool(mask.sum())).clamp_min(1)
    return cross_entropy + dice(logits.sigmoid(), truth, batch_dice=batch_dice, mask=mask, pool=pool)


def dice(p: Tensor, truth: Tensor, *, batch_dice: bool, mask: Tensor | None = None, pool: Pool = alone) -> Tensor:
    """Return minus the mean soft Dice of probabilities `p` and `truth`, both (B, C, *S) (spec B 1.10).

    Args:
        p: probabilities.
        truth: 0 and 1 in the type of `p`.
        batch_dice: sum over the batch first.
        pool: sums over processes.
        mask: bool (B, 1, *S), voxels that count.
    """
    if mask is not None:
        p = p.masked_fill(~mask, 0.0)
        truth = truth.masked_fill(~mask, 0.0)
    overlap = (p * truth).flatten(2).sum(2)  # (B, C)
    total = p.flatten(2).sum(2) + truth.flatten(2).sum(2)
    if batch_dice:
        overlap, total = pool(overlap.sum(0)), pool(total.sum(0))
    scores = (2 * overlap + SMOOTH) / (total + SMOOTH).clamp_min(SMALLEST_DENOMINATOR)
    return -scores.mean() if batch_dice else -_weighted(scores.mean(), len(p), pool)


def _dice_ce(*, batch_dice: bool, pool: Pool = alone) -> ResolutionLoss:
    return partial(dice_ce, batch_dice=batch_dice, pool=pool)


def _dice_bce(*, batch_dice: bool, pool: Pool = alone) -> ResolutionLoss:
    return partial(dice_bce, batch_dice=batch_dice, pool=pool)


LOSSES: Registry[LossFactory] = Registry("loss")
LOSSES.register("dice_ce", _dice_ce)
LOSSES.register("dice_bce", _dice_bce)


def _weighted(mean: Tensor, samples: int, pool: Pool) -> Tensor:
    """Return a mean over the samples here as the mean over those of all processes, whose numbers may differ."""
    return mean if pool is alone else pool(mean * samples) / pool(torch.full_like(mean, samples, requires_grad=False))


def _averaged(loss: ResolutionLoss, pool: Pool, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
    return _weighted(loss(output, target, labels=labels), len(output), pool)


def _widened(output: Tensor) -> Tensor:
    """Return logits in float32 (or wider), channels first: reductions over a channels-last layout are slow."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return output.to(dtype, memory_format=torch.contiguous_format)


def _one_resolution(loss: ResolutionLoss, labels: Labels, outputs: Outputs, targets: Outputs) -> Tensor:
    output = outputs if isinstance(outputs, Tensor) else outputs[0]
    target = targets if isinstance(targets, Tensor) else targets[0]
    return loss(output, target, labels=labels)


def _deeply_supervised(loss: TrainingLoss, weights: Sequence[float], outputs: Outputs, targets: Outputs) -> Tensor:
    if isinstance(outputs, Tensor):  # a network that gives only its full resolution outside training
        return loss(outputs, targets[0])
    terms = [
        weight * loss(output, target)
        for weight, output, target in zip(weights, outputs, targets, strict=True)
        if weight != 0
    ]
    return torch.stack(terms).sum()


def _hiding_ignored(loss: ResolutionLoss, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
    """Call a loss that knows nothing of ignored voxels with the right answer put in for them.

    It then sees neither their logits nor their label, so their gradient is exactly 0. They still count as voxels
    that were got right; a loss that wants a mean over annotated voxels alone is registered and masks by itself.
    """
    if labels.has_regions:
        ignored, known = target[:, -1:].bool(), target[:, :-1]
        answer = torch.where(known.bool(), HIDDEN_LOGIT, -HIDDEN_LOGIT).to(output.dtype)
    else:
        ignored = torch.eq(target, labels.ignore_label or 0)
        known = target.masked_fill(ignored, 0)
        answer = torch.zeros_like(output)
        answer[:, 0] = HIDDEN_LOGIT
    return loss(torch.where(ignored, answer, output), known, labels=labels)
