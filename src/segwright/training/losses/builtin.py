"""Losses: soft Dice, cross entropies, top-k, class weights; deep supervision and ignored voxels around them.

Array letters: B samples, C channels (heads), S spatial axes. A loss of one resolution is any
`fn(output (B, C, *S), target, *, labels) -> scalar`; targets are as `training.targets` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import UserCodeError, source_location
from segwright.data.labels import Labels
from segwright.training.losses.terms import Entropy, Pool, alone, averaged, dice, mean_entropy, top_entropy

HIDDEN_LOGIT = 30.0
"""Logit of the right answer put in for an ignored voxel before a loss that does not know of ignored voxels."""

Outputs = Tensor | Sequence[Tensor]
"""Logits, or logits of several resolutions, the highest first."""

TrainingLoss = Callable[[Outputs, Outputs], Tensor]
"""What a trainer calls: (outputs, targets) to a scalar."""


class ResolutionLoss(Protocol):
    """The contract of a loss."""

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return a scalar for logits (B, C, *S) and their target (B, 1, *S) or (B, regions, *S)."""
        ...


class LossFactory(Protocol):
    """What a registered name stands for: a loss for labels and a kind of Dice."""

    def __call__(self, *, batch_dice: bool, pool: Pool = alone, class_weights: Tensor | None = None) -> ResolutionLoss:
        """Return the loss, its value that of the batches of all processes together; weights are (heads,), mean 1."""
        ...


def build_loss(
    labels: Labels,
    *,
    batch_dice: bool,
    num_outputs: int | None = None,
    reference: str | None = None,
    class_weights: Sequence[float] | None = None,
    pool: Pool = alone,
) -> TrainingLoss:
    """Return the loss of a run.

    Args:
        labels: decide between labels and regions and name the ignore label.
        batch_dice: sum over the batch before the Dice is taken.
        num_outputs: resolutions the network gives; None: one tensor.
        reference: a registered name or `module:attr`; None: `dice_bce` for regions, else `dice_ce`.
        class_weights: of each head, background first for labels; None: all alike.
        pool: sums over processes; a loss from outside is averaged over their samples.

    Raises:
        ConfigError: the loss is unknown or does not suit labels or regions, or the class weights do not.
    """
    name = reference or ("dice_bce" if labels.has_regions else "dice_ce")
    loss: ResolutionLoss
    if ":" in name:
        loss = import_reference(name, kind="loss")
        if not callable(loss):
            raise ConfigError(f"loss '{name}' is not callable; name a function fn(output, target, *, labels)")
        if class_weights is not None:
            raise ConfigError(f"class_weights are for the built-in losses; write them into '{name}' or drop them")
        loss = partial(_required_scalar, loss, name)
        if labels.ignore_label is not None:
            loss = partial(_hiding_ignored, loss)
        loss = loss if pool is alone else partial(_averaged, loss, pool)
    else:
        factory = LOSSES.get(name)
        _require_fit(name, labels)
        if class_weights is None:
            loss = factory(batch_dice=batch_dice, pool=pool)
        else:
            weights = _checked_weights(class_weights, labels, name)
            loss = factory(batch_dice=batch_dice, pool=pool, class_weights=weights)
    one_scale: TrainingLoss = partial(_one_resolution, loss, labels)
    if num_outputs is None:
        return one_scale
    return partial(_deeply_supervised, one_scale, deep_supervision_weights(num_outputs))


def deep_supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """Return the weight of each output, highest resolution first: halved each time, the last 0, sum 1.

    nnU-Net behaviour 8.6.1.

    >>> [round(weight, 4) for weight in deep_supervision_weights(5)]
    [0.5333, 0.2667, 0.1333, 0.0667, 0.0]
    """
    if num_outputs == 1:
        return (1.0,)
    weights = [0.5**index for index in range(num_outputs - 1)] + [0.0]
    return tuple(weight / sum(weights) for weight in weights)


def label_loss(
    output: Tensor,
    target: Tensor,
    *,
    labels: Labels,
    entropy: Entropy | None,
    with_dice: bool,
    batch_dice: bool = False,
    class_weights: Tensor | None = None,
    pool: Pool = alone,
) -> Tensor:
    """Return the sum of a cross entropy and minus the mean soft Dice of the foreground labels.

    nnU-Net behaviour 8.6.3.

    Both share one log-softmax. Ignored voxels have gradient 0 in both; with none annotated the cross entropy is 0.

    Args:
        output: logits (B, C, *S).
        target: label values (B, 1, *S), any integer type.
        labels: name the ignore label.
        entropy: `mean_entropy`, `top_entropy` or none.
        with_dice: add the Dice term.
        batch_dice: sum over the batch before the Dice is taken.
        class_weights: (C,), mean 1: both terms become weighted means, the Dice over its foreground labels.
        pool: sums over processes.
    """
    log_p = F.log_softmax(_widened(output), dim=1)
    index = target.long()
    ignore = labels.ignore_label
    mask = None if ignore is None else index != ignore
    if mask is not None:
        index = index.masked_fill(~mask, 0)
    weights = _placed(class_weights, log_p)
    terms = []
    if entropy is not None:
        terms.append(entropy(log_p, index, mask=mask, weights=weights, pool=pool))
    if with_dice:
        one_hot = torch.zeros_like(log_p).scatter_(1, index, 1.0)[:, 1:]
        foreground = None if weights is None else weights[1:]
        p = log_p[:, 1:].exp()
        terms.append(dice(p, one_hot, batch_dice=batch_dice, mask=mask, class_weights=foreground, pool=pool))
    return sum(terms[1:], start=terms[0])


def dice_ce(output: Tensor, target: Tensor, *, labels: Labels, batch_dice: bool, pool: Pool = alone) -> Tensor:
    """Return nnU-Net's loss for labels: `label_loss` of mean cross entropy and Dice (nnU-Net 2.8.1 behaviour)."""
    return label_loss(
        output, target, labels=labels, entropy=mean_entropy, with_dice=True, batch_dice=batch_dice, pool=pool
    )


def region_loss(
    output: Tensor,
    target: Tensor,
    *,
    labels: Labels,
    with_entropy: bool,
    batch_dice: bool,
    class_weights: Tensor | None = None,
    pool: Pool = alone,
) -> Tensor:
    """Return binary cross entropy, where it is wanted, minus the mean soft Dice of the regions.

    nnU-Net behaviour 8.6.4.

    With an ignore label the cross entropy is the mean over annotated voxels *and regions*, so that it weighs the same
    as without one. nnU-Net 2.8.1 divides by the voxels alone and so multiplies it by the number of regions
    (nnU-Net behaviour 8.6.4): a deviation on purpose.

    Args:
        output: logits (B, regions, *S).
        target: bool (B, regions, *S), with an ignore label one more channel, true where nobody annotated.
        labels: tell whether there is an ignore label.
        with_entropy: add the cross entropy.
        batch_dice: sum over the batch before the Dice is taken.
        class_weights: (regions,), mean 1: both terms become weighted means over the regions.
        pool: sums over processes.
    """
    logits = _widened(output)
    mask = None if labels.ignore_label is None else ~target[:, -1:].bool()
    truth = target[:, : logits.shape[1]].to(logits.dtype)
    weights = _placed(class_weights, logits)
    overlap = dice(logits.sigmoid(), truth, batch_dice=batch_dice, mask=mask, class_weights=weights, pool=pool)
    if not with_entropy:
        return overlap
    spread = None if weights is None else weights.view(-1, *(1,) * (logits.ndim - 2))
    if mask is None:
        cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, weight=spread)
        return averaged(cross_entropy, len(logits), pool) + overlap
    voxelwise = F.binary_cross_entropy_with_logits(logits, truth, weight=spread, reduction="none")
    voxelwise = voxelwise.masked_fill(~mask, 0.0)
    return pool(voxelwise.sum()) / (logits.shape[1] * pool(mask.sum())).clamp_min(1) + overlap


def dice_bce(output: Tensor, target: Tensor, *, labels: Labels, batch_dice: bool, pool: Pool = alone) -> Tensor:
    """Return the loss for regions: `region_loss` of binary cross entropy and Dice."""
    return region_loss(output, target, labels=labels, with_entropy=True, batch_dice=batch_dice, pool=pool)


def _label_loss(entropy: Entropy, *, with_dice: bool) -> LossFactory:
    def factory(*, batch_dice: bool, pool: Pool = alone, class_weights: Tensor | None = None) -> ResolutionLoss:
        return partial(
            label_loss,
            entropy=entropy,
            with_dice=with_dice,
            batch_dice=batch_dice,
            class_weights=class_weights,
            pool=pool,
        )

    return factory


def _dice_bce(*, batch_dice: bool, pool: Pool = alone, class_weights: Tensor | None = None) -> ResolutionLoss:
    return partial(region_loss, with_entropy=True, batch_dice=batch_dice, class_weights=class_weights, pool=pool)


def _dice(*, batch_dice: bool, pool: Pool = alone, class_weights: Tensor | None = None) -> ResolutionLoss:
    options: dict[str, Any] = {"batch_dice": batch_dice, "class_weights": class_weights, "pool": pool}

    def loss(output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        if labels.has_regions:
            return region_loss(output, target, labels=labels, with_entropy=False, **options)
        return label_loss(output, target, labels=labels, entropy=None, with_dice=True, **options)

    return loss


LOSSES: Registry[LossFactory] = Registry("loss")
LOSSES.register("dice_ce", _label_loss(mean_entropy, with_dice=True))
LOSSES.register("dice_bce", _dice_bce)
LOSSES.register("dice", _dice)
LOSSES.register("ce", _label_loss(mean_entropy, with_dice=False))
LOSSES.register("topk10", _label_loss(top_entropy, with_dice=False))
LOSSES.register("dice_topk10", _label_loss(top_entropy, with_dice=True))

FOR_LABELS: Final = ("dice_ce", "dice", "ce", "topk10", "dice_topk10")
FOR_REGIONS: Final = ("dice_bce", "dice")
"""Which of the built-in losses suit; the cross entropies are between classes that exclude each other."""

DICE_LOSSES: Final = ("dice_ce", "dice_bce", "dice", "dice_topk10")


def _require_fit(name: str, labels: Labels) -> None:
    """Refuse a built-in loss of the other kind; one that a user registered is taken at its word."""
    fitting = FOR_REGIONS if labels.has_regions else FOR_LABELS
    if name not in fitting and name in (*FOR_LABELS, *FOR_REGIONS):
        kind = "regions" if labels.has_regions else "labels"
        raise ConfigError(
            f"loss '{name}' does not suit {kind}; choose from {', '.join(fitting)}, or leave the loss to its default"
        )


def _checked_weights(values: Sequence[float], labels: Labels, name: str) -> Tensor:
    """Return class weights (heads,) scaled to mean 1, so that equal ones are the same as none."""
    names = ", ".join(labels.names[index] for index in range(labels.num_heads))
    if len(values) != labels.num_heads:
        raise ConfigError(f"class_weights has {len(values)} entries, expected {labels.num_heads}, in the order {names}")
    weights = torch.tensor(values, dtype=torch.float32)
    if name in DICE_LOSSES and not labels.has_regions and not bool(weights[1:].any()):
        raise ConfigError(
            f"class_weights {list(values)}: all foreground labels ({names}) weigh 0, so loss '{name}' has no Dice; "
            "give one of them a weight, or choose loss 'ce'"
        )
    return weights / weights.mean()


def _placed(weights: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(like.device, like.dtype, non_blocking=True)


def _averaged(loss: ResolutionLoss, pool: Pool, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
    return averaged(loss(output, target, labels=labels), len(output), pool)


def _widened(output: Tensor) -> Tensor:
    """Return logits in float32 (or wider), channels first: reductions over a channels-last layout are slow."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return output.to(dtype, memory_format=torch.contiguous_format)


def _one_resolution(loss: ResolutionLoss, labels: Labels, outputs: Outputs, targets: Outputs) -> Tensor:
    output = outputs if isinstance(outputs, Tensor) else outputs[0]
    target = targets if isinstance(targets, Tensor) else targets[0]
    return loss(output, target, labels=labels)


def _required_scalar(loss: ResolutionLoss, name: str, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
    found: object = loss(output, target, labels=labels)
    if isinstance(found, Tensor) and found.ndim == 0:
        return found
    shown = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise UserCodeError(f"{source_location(loss)}: loss '{name}' gave {shown}; it must return a scalar tensor")


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
