"""Terms of the built-in losses: soft overlaps and cross entropies, with mask and class weights, reduced over processes.

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

MIN_ERROR = 1e-8
"""Lower bound of 1 - p of the true class in the focal loss, where a power of it has no finite gradient at 0."""

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


class BinaryCrossEntropy(Protocol):
    """A binary cross entropy of regions, such as `binary_cross_entropy`."""

    def __call__(
        self, logits: Tensor, truth: Tensor, *, mask: Tensor | None, weights: Tensor | None, reduce: Reduce
    ) -> Tensor:
        """Return a scalar for logits and truth (0 and 1), both (B, C, *S)."""
        ...


class Overlap(Protocol):
    """Minus the mean of an overlap measure over classes, such as `dice`."""

    def __call__(
        self,
        p: Tensor,
        truth: Tensor,
        *,
        batch_dice: bool,
        mask: Tensor | None,
        class_weights: Tensor | None,
        reduce: Reduce,
    ) -> Tensor:
        """Return a scalar for probabilities and truth (0 and 1), both (B, C, *S)."""
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
    return _weighted_mean(-log_p.gather(1, index), index, mask=mask, weights=weights, reduce=reduce)


def focal_cross_entropy(
    log_p: Tensor,
    index: Tensor,
    *,
    gamma: float,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p over the annotated voxels, p the probability of the true class.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002, equation 5; its alpha is the class
    weights, and the mean is over voxels instead of anchors. Other arguments as for `cross_entropy`, which is gamma 0.

    Args:
        gamma: exponent from 0; the larger, the less do voxels count that are already predicted well.
    """
    log_true = log_p.gather(1, index)
    values = -_error_of(log_true).pow(gamma) * log_true
    return _weighted_mean(values, index, mask=mask, weights=weights, reduce=reduce)


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


def binary_cross_entropy(
    logits: Tensor,
    truth: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
) -> Tensor:
    """Return the mean binary cross entropy over annotated voxels and regions.

    Args:
        logits: (B, C, *S).
        truth: 0 and 1 in the type of `logits`.
        mask: bool (B, 1, *S), true for annotated voxels.
        weights: (C,), factors of the regions.
        reduce: sums over processes.
    """
    shaped = None if weights is None else _along_channels(weights, logits)
    if mask is None:
        mean = F.binary_cross_entropy_with_logits(logits, truth, weight=shaped)
        return reduce_mean(mean, len(logits), reduce)
    values = F.binary_cross_entropy_with_logits(logits, truth, weight=shaped, reduction="none")
    return _masked_mean(values, mask, reduce)


def focal_binary_cross_entropy(
    logits: Tensor,
    truth: Tensor,
    *,
    gamma: float,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p over annotated voxels and regions, p the probability of the truth.

    Lin et al., see `focal_cross_entropy`. Other arguments as for `binary_cross_entropy`, which is gamma 0.

    Args:
        gamma: exponent from 0.
    """
    log_true = F.logsigmoid(logits * (2 * truth - 1))
    values = -_error_of(log_true).pow(gamma) * log_true
    values = values if weights is None else values * _along_channels(weights, logits)
    return reduce_mean(values.mean(), len(logits), reduce) if mask is None else _masked_mean(values, mask, reduce)


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
    p, truth = _without_ignored(p, truth, mask)
    overlap = (p * truth).flatten(2).sum(2)  # (B, C)
    total = p.flatten(2).sum(2) + truth.flatten(2).sum(2)
    if batch_dice:
        overlap, total = reduce(overlap.sum(0)), reduce(total.sum(0))
    scores = (2 * overlap + smooth) / (total + smooth).clamp_min(MIN_DENOMINATOR)
    return _minus_mean(scores, len(p), batch_dice=batch_dice, class_weights=class_weights, reduce=reduce)


def tversky(
    p: Tensor,
    truth: Tensor,
    *,
    alpha: float,
    beta: float,
    batch_dice: bool,
    mask: Tensor | None = None,
    class_weights: Tensor | None = None,
    reduce: Reduce = identity_reduce,
    smooth: float = SMOOTH,
) -> Tensor:
    """Return minus the mean soft Tversky index, tp / (tp + alpha fp + beta fn), of `p` and `truth`, both (B, C, *S).

    Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep networks", MLMI 2017,
    arXiv 1706.05721, equation 3. Half and half give the Dice, alpha 0 and beta 1 the recall. Other arguments as for
    `dice`.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives.
    """
    p, truth = _without_ignored(p, truth, mask)
    overlap = (p * truth).flatten(2).sum(2)  # (B, C)
    predicted, true = p.flatten(2).sum(2), truth.flatten(2).sum(2)
    if batch_dice:
        overlap, predicted, true = (reduce(each.sum(0)) for each in (overlap, predicted, true))
    total = overlap + alpha * (predicted - overlap) + beta * (true - overlap)
    scores = (overlap + smooth) / (total + smooth).clamp_min(MIN_DENOMINATOR)
    return _minus_mean(scores, len(p), batch_dice=batch_dice, class_weights=class_weights, reduce=reduce)


def reduce_mean(mean: Tensor, num_samples: int, reduce: Reduce) -> Tensor:
    """Return the mean over the samples of all processes, given the mean over the `num_samples` of this one."""
    if reduce is identity_reduce:
        return mean
    return reduce(mean * num_samples) / reduce(torch.full_like(mean, num_samples, requires_grad=False))


def _without_ignored(p: Tensor, truth: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return (p, truth) if mask is None else (p.masked_fill(~mask, 0.0), truth.masked_fill(~mask, 0.0))


def _minus_mean(
    scores: Tensor, num_samples: int, *, batch_dice: bool, class_weights: Tensor | None, reduce: Reduce
) -> Tensor:
    """Return minus the weighted mean of scores (C,) of the batch, or (B, C) of this process's samples."""
    if class_weights is not None:
        scores = scores * (class_weights / class_weights.mean())
    return -scores.mean() if batch_dice else -reduce_mean(scores.mean(), num_samples, reduce)


def _weighted_mean(
    values: Tensor, index: Tensor, *, mask: Tensor | None, weights: Tensor | None, reduce: Reduce
) -> Tensor:
    """Return the mean of values (B, 1, *S) over the annotated voxels, each with the weight of its class."""
    if mask is None and weights is None:
        return reduce_mean(values.mean(), len(values), reduce)
    if mask is not None:
        values = values.masked_fill(~mask, 0.0)
    if weights is None:
        assert mask is not None
        return reduce(values.sum()) / reduce(mask.sum()).clamp_min(1)
    parts = weights[index] if mask is None else weights[index].masked_fill(~mask, 0.0)
    return reduce((parts * values).sum()) / reduce(parts.sum()).clamp_min(MIN_DENOMINATOR)


def _masked_mean(values: Tensor, mask: Tensor, reduce: Reduce) -> Tensor:
    """Return the mean of values (B, C, *S) over annotated voxels and channels."""
    values = values.masked_fill(~mask, 0.0)
    return reduce(values.sum()) / (values.shape[1] * reduce(mask.sum())).clamp_min(1)


def _along_channels(weights: Tensor, like: Tensor) -> Tensor:
    return weights.view(-1, *(1,) * (like.ndim - 2))


def _error_of(log_p: Tensor) -> Tensor:
    """Return 1 - p, at least `MIN_ERROR`."""
    return (-torch.expm1(log_p)).clamp_min(MIN_ERROR)


def _voxelwise(log_p: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """Return the cross entropy of each voxel (B, 1, *S), 0 for ignored ones."""
    values = -log_p.gather(1, index)
    return values if mask is None else values.masked_fill(~mask, 0.0)
