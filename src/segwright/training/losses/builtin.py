"""Training losses: soft Dice, cross entropies and top-k with class weights; deep supervision and ignored voxels.

Array letters: B samples, C channels (heads), S spatial axes. A loss of one resolution is any
`fn(output (B, C, *S), target, *, labels) -> scalar`; targets are as `training.loading.targets` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segwright.core.device import copy_to
from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import UserCodeError, require_arguments, source_location, user_call
from segwright.data.labels import Labels
from segwright.training.losses.terms import (
    CrossEntropy,
    Reduce,
    cross_entropy,
    dice,
    identity_reduce,
    reduce_mean,
    topk_cross_entropy,
)

MASKED_LOGIT = 30.0
"""Logit given to the correct class of an ignored voxel, for a loss without an ignore mask."""

Outputs = Tensor | Sequence[Tensor]
"""Logits, or logits of several resolutions, the highest first."""

TrainingLoss = Callable[[Outputs, Outputs], Tensor]
"""Called by the trainer: (outputs, targets) to a scalar."""


class ResolutionLoss(Protocol):
    """A loss of one resolution."""

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return a scalar for logits (B, C, *S) and their target (B, 1, *S) or (B, regions, *S)."""
        ...


class LossFactory(Protocol):
    """Builds the loss behind a registered name."""

    def __call__(
        self, *, batch_dice: bool, reduce: Reduce = identity_reduce, class_weights: Tensor | None = None
    ) -> ResolutionLoss:
        """Return the loss over the batches of all processes; class weights are (heads,), mean 1."""
        ...


def build_loss(
    labels: Labels,
    *,
    batch_dice: bool,
    num_outputs: int | None = None,
    reference: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    class_weights: Sequence[float] | None = None,
    reduce: Reduce = identity_reduce,
    device: torch.device | None = None,
    logits_of: Callable[[Any], Outputs] | None = None,
) -> TrainingLoss:
    """Return the loss of a training.

    Args:
        labels: of the dataset; with regions the loss is binary per head.
        batch_dice: sum over the batch before the Dice is taken.
        num_outputs: number of resolutions of the network; None: one tensor.
        reference: a registered name or `module:attr`; None: `dice_bce` for regions, else `dice_ce`. Code of one's own
            is called as `fn(output, target, *, labels, **kwargs)`; a class is made with `kwargs` first, and then
            called without them.
        kwargs: keyword arguments of a loss of one's own.
        class_weights: of each head, background first for labels; None: equal weights.
        reduce: sums over processes; a custom loss is averaged over the samples of all processes.
        device: where a loss that is an `nn.Module` is put.
        logits_of: finds the logits in what the network returns; None: it returns logits.

    Raises:
        ConfigError: the loss is unknown or does not support labels or regions, or the class weights are invalid.
    """
    name = reference or ("dice_bce" if labels.has_regions else "dice_ce")
    loss: ResolutionLoss
    if ":" in name:
        if class_weights is not None:
            raise ConfigError(f"class_weights are for the built-in losses; write them into '{name}' or drop them")
        loss = _own_loss(name, dict(kwargs or {}), device)
        loss = CustomLoss(loss=loss, name=name, reduce=reduce)
    else:
        factory = LOSSES.get(name)
        if kwargs:
            raise ConfigError(f"loss_kwargs {dict(kwargs)} are for a loss of one's own; '{name}' takes none")
        _require_fit(name, labels)
        if class_weights is None:
            loss = factory(batch_dice=batch_dice, reduce=reduce)
        else:
            weights = _checked_weights(class_weights, labels, name)
            loss = factory(batch_dice=batch_dice, reduce=reduce, class_weights=weights)
    level_weights = None if num_outputs is None else deep_supervision_weights(num_outputs)
    whole = DeepSupervisionLoss(loss=loss, labels=labels, weights=level_weights)
    return whole if logits_of is None else LogitsLoss(loss=whole, logits_of=logits_of)


def _own_loss(name: str, kwargs: dict[str, Any], device: torch.device | None) -> ResolutionLoss:
    """Return the loss behind a reference, with its keyword arguments."""
    found: Any = import_reference(name, kind="loss")
    if isinstance(found, type):
        contract = f"a loss's class is made with loss_kwargs, {kwargs}"
        with user_call(found, f"loss '{name}'", contract=contract):
            found, kwargs = found(**kwargs), {}
    if not callable(found):
        raise ConfigError(f"loss '{name}' is not callable; name a function fn(output, target, *, labels)")
    called = found.forward if isinstance(found, nn.Module) else found
    contract = "fn(output, target, *, labels, **loss_kwargs) -> scalar"
    require_arguments(called, f"loss '{name}'", ("labels",), 2, kwargs, contract=contract)
    if isinstance(found, nn.Module):
        found = found.to(device)
    return partial(found, **kwargs) if kwargs else found


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSupervisionLoss:
    """The weighted sum of a loss over the resolutions of a network.

    Attributes:
        loss: of one resolution.
        labels: of the dataset.
        weights: of each resolution, highest first; None: the highest alone.
    """

    loss: ResolutionLoss
    labels: Labels
    weights: tuple[float, ...] | None

    def __call__(self, outputs: Outputs, targets: Outputs) -> Tensor:
        """Return a scalar; a network may give one tensor outside of training."""
        if self.weights is None or isinstance(outputs, Tensor):
            return self.loss(_highest(outputs), _highest(targets), labels=self.labels)
        terms = [
            weight * self.loss(output, target, labels=self.labels)
            for weight, output, target in zip(self.weights, outputs, targets, strict=True)
            if weight != 0
        ]
        return torch.stack(terms).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsLoss:
    """A loss of the logits alone, for a network that returns more."""

    loss: TrainingLoss
    logits_of: Callable[[Any], Outputs]

    def __call__(self, output: Any, target: Outputs) -> Tensor:
        """Return a scalar."""
        return self.loss(self.logits_of(output), target)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomLoss:
    """A user's loss, with ignored voxels masked and its result checked and averaged over processes.

    Attributes:
        loss: the user's function.
        name: its reference, for messages.
        reduce: sums over processes.
    """

    loss: ResolutionLoss
    name: str
    reduce: Reduce

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the user's loss.

        Raises:
            UserCodeError: it is not a scalar tensor.
        """
        if labels.ignore_label is not None:
            output, target = _mask_ignored(output, target, labels)
        value = _required_scalar(self.loss(output, target, labels=labels), self.loss, self.name)
        return value if self.reduce is identity_reduce else reduce_mean(value, len(output), self.reduce)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLoss:
    """The sum of a cross entropy and minus the mean soft Dice of the foreground labels.

    nnU-Net behaviour 8.6.3.

    Both share one log-softmax. Ignored voxels have gradient 0 in both; without annotated voxels the cross entropy is 0.

    Attributes:
        ce: the cross entropy term, `cross_entropy` or `topk_cross_entropy`; None: Dice alone.
        with_dice: add the Dice term.
        batch_dice: sum over the batch before the Dice is computed.
        class_weights: (C,), mean 1: both terms become weighted means, the Dice over its foreground labels.
        reduce: sums over processes.
    """

    ce: CrossEntropy | None = cross_entropy
    with_dice: bool = True
    batch_dice: bool
    class_weights: Tensor | None = None
    reduce: Reduce = identity_reduce

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the loss of logits (B, C, *S) and label values (B, 1, *S) of any integer type."""
        log_p = F.log_softmax(_to_float32(output), dim=1)
        index = target.long()
        ignore = labels.ignore_label
        mask = None if ignore is None else index != ignore
        if mask is not None:
            index = index.masked_fill(~mask, 0)
        weights = _weights_like(self.class_weights, log_p)
        terms = []
        if self.ce is not None:
            terms.append(self.ce(log_p, index, mask=mask, weights=weights, reduce=self.reduce))
        if self.with_dice:
            one_hot = torch.zeros_like(log_p).scatter_(1, index, 1.0)[:, 1:]
            foreground = None if weights is None else weights[1:]
            p, batch_dice, reduce = log_p[:, 1:].exp(), self.batch_dice, self.reduce
            terms.append(dice(p, one_hot, batch_dice=batch_dice, mask=mask, class_weights=foreground, reduce=reduce))
        return sum(terms[1:], start=terms[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLoss:
    """The sum of a binary cross entropy and minus the mean soft Dice of the regions.

    nnU-Net behaviour 8.6.4.

    With an ignore label the cross entropy is the mean over annotated voxels *and regions*, so that it has the same
    weight as without one. nnU-Net 2.8.1 divides by the voxels alone and so multiplies it by the number of regions
    (nnU-Net behaviour 8.6.4): an intended deviation.

    Attributes:
        with_bce: add the binary cross entropy.
        batch_dice: sum over the batch before the Dice is computed.
        class_weights: (regions,), mean 1: both terms become weighted means over the regions.
        reduce: sums over processes.
    """

    with_bce: bool = True
    batch_dice: bool
    class_weights: Tensor | None = None
    reduce: Reduce = identity_reduce

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the loss of logits (B, regions, *S) and their target.

        The target is bool (B, regions, *S); with an ignore label one more channel is true where a voxel is ignored.
        """
        logits = _to_float32(output)
        mask = None if labels.ignore_label is None else ~target[:, -1:].bool()
        truth = target[:, : logits.shape[1]].to(logits.dtype)
        weights, batch_dice, reduce = _weights_like(self.class_weights, logits), self.batch_dice, self.reduce
        dice_term = dice(
            logits.sigmoid(), truth, batch_dice=batch_dice, mask=mask, class_weights=weights, reduce=reduce
        )
        if not self.with_bce:
            return dice_term
        weights = None if weights is None else weights.view(-1, *(1,) * (logits.ndim - 2))
        if mask is None:
            bce = F.binary_cross_entropy_with_logits(logits, truth, weight=weights)
            return reduce_mean(bce, len(logits), reduce) + dice_term
        voxelwise = F.binary_cross_entropy_with_logits(logits, truth, weight=weights, reduction="none")
        voxelwise = voxelwise.masked_fill(~mask, 0.0)
        return reduce(voxelwise.sum()) / (logits.shape[1] * reduce(mask.sum())).clamp_min(1) + dice_term


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceLoss:
    """Minus the mean soft Dice of foreground labels or regions; attributes as of `RegionLoss`."""

    batch_dice: bool
    class_weights: Tensor | None = None
    reduce: Reduce = identity_reduce

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the loss."""
        batch_dice, weights, reduce = self.batch_dice, self.class_weights, self.reduce
        loss: ResolutionLoss
        if labels.has_regions:
            loss = RegionLoss(with_bce=False, batch_dice=batch_dice, class_weights=weights, reduce=reduce)
        else:
            loss = LabelLoss(ce=None, batch_dice=batch_dice, class_weights=weights, reduce=reduce)
        return loss(output, target, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLossFactory:
    """Makes a `LabelLoss` with the given terms."""

    ce: CrossEntropy
    with_dice: bool

    def __call__(
        self, *, batch_dice: bool, reduce: Reduce = identity_reduce, class_weights: Tensor | None = None
    ) -> LabelLoss:
        """Return the loss."""
        return LabelLoss(
            ce=self.ce,
            with_dice=self.with_dice,
            batch_dice=batch_dice,
            class_weights=class_weights,
            reduce=reduce,
        )


LOSSES: Registry[LossFactory] = Registry("loss")
LOSSES.register("dice_ce", LabelLossFactory(ce=cross_entropy, with_dice=True))
LOSSES.register("dice_bce", RegionLoss)
LOSSES.register("dice", DiceLoss)
LOSSES.register("ce", LabelLossFactory(ce=cross_entropy, with_dice=False))
LOSSES.register("topk10", LabelLossFactory(ce=topk_cross_entropy, with_dice=False))
LOSSES.register("dice_topk10", LabelLossFactory(ce=topk_cross_entropy, with_dice=True))

LABEL_LOSSES: Final = ("dice_ce", "dice", "ce", "topk10", "dice_topk10")
REGION_LOSSES: Final = ("dice_bce", "dice")
"""Built-in losses for labels and for regions, which may overlap, so that a softmax cross entropy is undefined."""

DICE_LOSSES: Final = ("dice_ce", "dice_bce", "dice", "dice_topk10")


def _require_fit(name: str, labels: Labels) -> None:
    """Refuse a built-in loss for the other kind of labels; losses that a user registered are not checked."""
    fitting = REGION_LOSSES if labels.has_regions else LABEL_LOSSES
    if name not in fitting and name in (*LABEL_LOSSES, *REGION_LOSSES):
        kind = "regions" if labels.has_regions else "labels"
        raise ConfigError(
            f"loss '{name}' does not support {kind}; choose from {', '.join(fitting)}, or omit it for the default"
        )


def _checked_weights(values: Sequence[float], labels: Labels, name: str) -> Tensor:
    """Return class weights (heads,) scaled to mean 1, so that equal weights have no effect."""
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


def _weights_like(weights: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weights is None else copy_to(weights.to(like.dtype), like.device)


def _to_float32(output: Tensor) -> Tensor:
    """Return logits in float32 (or wider), channels first: reductions over a channels-last layout are slow."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return output.to(dtype, memory_format=torch.contiguous_format)


def _highest(levels: Outputs) -> Tensor:
    return levels if isinstance(levels, Tensor) else levels[0]


def _required_scalar(value: object, loss: ResolutionLoss, name: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise UserCodeError(f"{source_location(loss)}: loss '{name}' returned {shown}; it must return a scalar tensor")


def _mask_ignored(output: Tensor, target: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """Return logits and target in which ignored voxels are predicted correctly, for a loss without an ignore mask.

    The loss depends neither on their logits nor on their label, so their gradient is exactly 0. But they count as
    correct voxels: a loss that averages over annotated voxels only has to be registered and mask them itself.
    """
    if labels.has_regions:
        ignored, known = target[:, -1:].bool(), target[:, :-1]
        correct = torch.where(known.bool(), MASKED_LOGIT, -MASKED_LOGIT).to(output.dtype)
    else:
        ignored = torch.eq(target, labels.ignore_label or 0)
        known = target.masked_fill(ignored, 0)
        correct = torch.zeros_like(output)
        correct[:, 0] = MASKED_LOGIT
    return torch.where(ignored, correct, output), known
