"""Terms of the built-in losses: soft Dice and cross entropies, with mask and class weights, reduced over processes.

Array letters: B samples, C channels (heads), S spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
"""Added to numerator and denominator of the soft Dice; nnU-Net behaviour 8.6.2."""
MIN_DENOMINATOR = 1e-8
"""Lower bound of a divisor; nnU-Net behaviour 8.6.2."""

TOP_PERCENT = 10
"""Percentage of the voxels that the top-k losses average over; nnU-Net behaviour 8.6.5."""


Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes of a training; for the gradient see `DistributedContext.reduce`."""


def identity_reduce(part: Tensor) -> Tensor:
    """Return the tensor itself: the sum over one process."""
    return part


class CrossEntropy(Protocol):
    """A cross entropy of labels, such as `cross_entropy`."""

    def __call__(
        self, log_p: Tensor, index: Tensor, *, mask: Tensor | None, weights: Tensor | None, reduce: Reduce
    ) -> Tensor:
        """Return a scalar for log-probabilities (B, C, *S) and classes (B, 1, *S)."""
        ...


def cross_entropy(
    log_p: Tensor,
    index: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
) -> Tensor:
    """Return the mean cross entropy over the annotated voxels, each with the weight of its class.

    Args:
        log_p: logarithms of probabilities (B, C, *S).
        index: the true classes (B, 1, *S), any class for ignored voxels.
        mask: bool (B, 1, *S), true for annotated voxels.
        weights: (C,), of the classes.
        reduce: sums over processes.
    """
    if mask is None and weights is None:
        return reduce_mean(F.nll_loss(log_p, index[:, 0]), len(index), reduce)
    values = _voxelwise(log_p, index, mask)
    if weights is None:
        assert mask is not None
        return reduce(values.sum()) / reduce(mask.sum()).clamp_min(1)
    parts = weights[index] if mask is None else weights[index].masked_fill(~mask, 0.0)
    return reduce((parts * values).sum()) / reduce(parts.sum()).clamp_min(MIN_DENOMINATOR)


def topk_cross_entropy(
    log_p: Tensor,
    index: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
) -> Tensor:
    """Return the mean cross entropy over the `TOP_PERCENT` % of the voxels where it is largest.

    nnU-Net behaviour 8.6.5.

    The percentage is of all voxels of the batch, including ignored ones, whose value is 0 (as in nnU-Net 2.8.1): where
    less than that is annotated, every annotated voxel counts. Each process ranks its own voxels. Arguments as for
    `cross_entropy`; with weights the weighted values are ranked.
    """
    values = _voxelwise(log_p, index, mask)
    parts = torch.ones_like(values) if weights is None else weights[index]
    if mask is not None:
        parts = parts.masked_fill(~mask, 1.0)
    values, parts = (values * parts).flatten(), parts.flatten()
    top, chosen = values.topk(max(1, values.numel() * TOP_PERCENT // 100))
    return reduce_mean(top.sum() / parts[chosen].sum().clamp_min(MIN_DENOMINATOR), len(log_p), reduce)


def dice(
    p: Tensor,
    truth: Tensor,
    *,
    batch_dice: bool,
    mask: Tensor | None = None,
    class_weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
    smooth: float = SMOOTH,
) -> Tensor:
    """Return minus the mean soft Dice of probabilities `p` and `truth`, both (B, C, *S) (nnU-Net behaviour 8.6.2).

    Args:
        p: probabilities.
        truth: 0 and 1 in the type of `p`.
        batch_dice: sum over the batch first.
        mask: bool (B, 1, *S), true for annotated voxels.
        class_weights: (C,), for a weighted mean over the classes.
        reduce: sums over processes.
        smooth: added to numerator and denominator.
    """
    if mask is not None:
        p = p.masked_fill(~mask, 0.0)
        truth = truth.masked_fill(~mask, 0.0)
    overlap = (p * truth).flatten(2).sum(2)  # (B, C)
    total = p.flatten(2).sum(2) + truth.flatten(2).sum(2)
    if batch_dice:
        overlap, total = reduce(overlap.sum(0)), reduce(total.sum(0))
    scores = (2 * overlap + smooth) / (total + smooth).clamp_min(MIN_DENOMINATOR)
    if class_weights is not None:
        scores = scores * (class_weights / class_weights.mean())
    return -scores.mean() if batch_dice else -reduce_mean(scores.mean(), len(p), reduce)


def reduce_mean(mean: Tensor, num_samples: int, reduce: Reduce) -> Tensor:
    """Return the mean over the samples of all processes, given the mean over the `num_samples` of this one."""
    if reduce is identity_reduce:
        return mean
    return reduce(mean * num_samples) / reduce(torch.full_like(mean, num_samples, requires_grad=False))


def _voxelwise(log_p: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """Return the cross entropy of each voxel (B, 1, *S), 0 for ignored ones."""
    values = -log_p.gather(1, index)
    return values if mask is None else values.masked_fill(~mask, 0.0)
