"""Losses of one resolution: a cross entropy and an overlap of labels or of regions, and the recall of skeletons.

Array letters: B samples, C channels (heads), S spatial axes. Targets are as `training.loading.targets` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from segwright.core.device import copy_to
from segwright.core.errors import ConfigError
from segwright.data.labels import Labels
from segwright.training.losses.terms import (
    BinaryCrossEntropy,
    CrossEntropy,
    Overlap,
    Reduce,
    binary_cross_entropy,
    cross_entropy,
    dice,
    identity_reduce,
    tversky,
)


class ResolutionLoss(Protocol):
    """A loss of one resolution."""

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return a scalar for logits (B, C, *S) and their target (B, 1, *S) or (B, regions, *S)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLoss:
    """The sum of a cross entropy and an overlap term, minus the mean soft Dice of the foreground labels by default.

    nnU-Net behaviour 8.6.3.

    Both share one log-softmax. Ignored voxels have gradient 0 in both; without annotated voxels the cross entropy is 0.

    Attributes:
        ce: the cross entropy term; None: overlap alone.
        overlap: the overlap term; None: cross entropy alone.
        batch_dice: sum over the batch before the overlap is computed.
        class_weights: (C,), mean 1: both terms become weighted means, the overlap's over the foreground labels.
        reduce: sums over processes.
    """

    ce: CrossEntropy | None = cross_entropy
    overlap: Overlap | None = dice
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
        if self.overlap is not None:
            one_hot = torch.zeros_like(log_p).scatter_(1, index, 1.0)[:, 1:]
            foreground = None if weights is None else weights[1:]
            p, batch_dice, reduce = log_p[:, 1:].exp(), self.batch_dice, self.reduce
            terms.append(
                self.overlap(p, one_hot, batch_dice=batch_dice, mask=mask, class_weights=foreground, reduce=reduce)
            )
        return sum(terms[1:], start=terms[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLoss:
    """The sum of a binary cross entropy and an overlap term, minus the mean soft Dice of the regions by default.

    nnU-Net behaviour 8.6.4.

    With an ignore label the cross entropy is the mean over annotated voxels *and regions*, so that it has the same
    weight as without one. nnU-Net 2.8.1 divides by the voxels alone and so multiplies it by the number of regions
    (nnU-Net behaviour 8.6.4): an intended deviation.

    Attributes:
        bce: the binary cross entropy term; None: overlap alone.
        overlap: the overlap term; None: cross entropy alone.
        batch_dice: sum over the batch before the overlap is computed.
        class_weights: (regions,), mean 1: both terms become weighted means over the regions.
        reduce: sums over processes.
    """

    bce: BinaryCrossEntropy | None = binary_cross_entropy
    overlap: Overlap | None = dice
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
        weights = _weights_like(self.class_weights, logits)
        terms = []
        if self.bce is not None:
            terms.append(self.bce(logits, truth, mask=mask, weights=weights, reduce=self.reduce))
        if self.overlap is not None:
            p, batch_dice, reduce = logits.sigmoid(), self.batch_dice, self.reduce
            terms.append(self.overlap(p, truth, batch_dice=batch_dice, mask=mask, class_weights=weights, reduce=reduce))
        return sum(terms[1:], start=terms[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOrRegionLoss:
    """A loss of labels and one of regions; the dataset decides."""

    of_labels: LabelLoss
    of_regions: RegionLoss

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the loss."""
        loss: ResolutionLoss = self.of_regions if labels.has_regions else self.of_labels
        return loss(output, target, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkeletonRecallLoss:
    """A loss plus minus the mean soft recall of tubes around the skeletons of the foreground.

    Kirchhoff et al., "Skeleton Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of Thin
    Tubular Structures", ECCV 2024, arXiv 2404.03010. A voxel counts for its label, or its regions, if it lies in a tube
    (`losses.skeletons`).

    Attributes:
        loss: to which the recall is added.
        weight: of the recall.
        batch_dice: sum over the batch before the recall is computed.
        class_weights: (heads,), mean 1: the recall becomes a weighted mean.
        reduce: sums over processes.
    """

    loss: ResolutionLoss
    weight: float
    batch_dice: bool
    class_weights: Tensor | None = None
    reduce: Reduce = identity_reduce

    def __call__(self, output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
        """Return the loss of logits and a target whose last channel is true (or 1) in the tubes.

        Raises:
            ConfigError: the target has no such channel.
        """
        usual = labels.num_heads + (labels.ignore_label is not None) if labels.has_regions else 1
        if target.shape[1] != usual + 1:
            raise ConfigError(
                f"loss 'skeleton_recall': the target has {target.shape[1]} channels instead of {usual + 1}; take the "
                "loaders of the trainer, which compute the skeletons"
            )
        target, tube = target[:, :-1], target[:, -1:].bool()
        logits, mask = _to_float32(output), None
        weights = _weights_like(self.class_weights, logits)
        if labels.has_regions:
            p, truth = logits.sigmoid(), target[:, : logits.shape[1]].bool()
            mask = None if labels.ignore_label is None else ~target[:, -1:].bool()
        else:  # ignored voxels have none of these labels
            index = torch.arange(1, logits.shape[1], device=target.device).view(-1, *(1,) * (logits.ndim - 2))
            p, truth = logits.softmax(1)[:, 1:], target == index
            weights = None if weights is None else weights[1:]
        recall = tversky(
            *(p, (truth & tube).to(p.dtype)),
            alpha=0.0,
            beta=1.0,
            batch_dice=self.batch_dice,
            mask=mask,
            class_weights=weights,
            reduce=self.reduce,
        )
        return self.loss(output, target, labels=labels) + self.weight * recall


def _weights_like(weights: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weights is None else copy_to(weights.to(like.dtype), like.device)


def _to_float32(output: Tensor) -> Tensor:
    """Return logits in float32 (or wider), channels first: reductions over a channels-last layout are slow."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return output.to(dtype, memory_format=torch.contiguous_format)
