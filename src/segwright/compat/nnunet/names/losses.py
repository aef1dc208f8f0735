"""nnU-Net's losses under its names, with its numbers (nnU-Net behaviour 8.6).

Array letters: B samples, C channels (heads), S spatial axes. Where a loss has nnU-Net's default parts, it is computed
by `training.losses`, as for our own trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn

from segwright.compat.nnunet.names.helpers import softmax_helper_dim1
from segwright.data.labels import BACKGROUND, IGNORE, Labels
from segwright.training.losses.combined import LabelLoss
from segwright.training.losses.terms import MIN_DENOMINATOR, SMOOTH, dice, identity_reduce

Nonlinearity = Callable[[Tensor], Tensor]

_MAX_PLAIN_IGNORE: Final = 10_000
"""Largest ignore label for which the labels below it are listed."""


def get_tp_fp_fn_tn(
    net_output: Tensor,
    gt: Tensor,
    axes: Sequence[int] | None = None,
    mask: Tensor | None = None,
    square: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return true positives, false positives, false negatives and true negatives, summed over `axes`.

    Args:
        net_output: (B, C, *S), probabilities or a one-hot map.
        gt: label map (B, 1, *S) or (B, *S), or one-hot (B, C, *S).
        axes: summed over; the spatial ones if None.
        mask: (B, 1, *S), 1 where voxels count.
        square: sum the squares.
    """
    axes = tuple(range(2, net_output.ndim)) if axes is None else tuple(axes)
    truth = _one_hot(net_output, gt)
    counts = (net_output * truth, net_output * (1 - truth), (1 - net_output) * truth, (1 - net_output) * (1 - truth))
    if mask is not None:
        counts = tuple(part * mask for part in counts)  # type: ignore[assignment]
    if square:
        counts = tuple(part**2 for part in counts)  # type: ignore[assignment]
    dtype = torch.promote_types(counts[0].dtype, torch.float32)
    if not axes:
        return counts
    first, second, third, fourth = (part.sum(axes, dtype=dtype) for part in counts)
    return first, second, third, fourth


class SoftDiceLoss(nn.Module):
    """Minus the mean soft Dice over samples and channels; `clip_tp` is a lower limit of the true positives."""

    def __init__(
        self,
        apply_nonlin: Nonlinearity | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp
        self.clip_tp = clip_tp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return the loss of (B, C, *S) and a target as of `get_tp_fp_fn_tn`."""
        if self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        axes = (*((0,) if self.batch_dice else ()), *range(2, x.ndim))
        tp, fp, fn, _ = get_tp_fp_fn_tn(x, y, axes, loss_mask)
        if self.ddp and self.batch_dice:
            tp, fp, fn = (sum_over_processes(part) for part in (tp, fp, fn))
        if self.clip_tp is not None:
            tp = tp.clamp_min(self.clip_tp)
        scores = (2 * tp + self.smooth) / (2 * tp + fp + fn + self.smooth).clamp_min(MIN_DENOMINATOR)
        if not self.do_bg:
            scores = scores[1:] if self.batch_dice else scores[:, 1:]
        return -scores.mean()


class MemoryEfficientSoftDiceLoss(nn.Module):
    """Minus the mean soft Dice, as `training.losses` computes it."""

    def __init__(
        self,
        apply_nonlin: Nonlinearity | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return the loss of (B, C, *S) and a label map (B, 1, *S) or one-hot target."""
        if self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        truth = _one_hot(x, y)
        if not self.do_bg:
            x, truth = x[:, 1:], truth[:, 1:]
        mask = None if loss_mask is None else loss_mask.bool()
        reduce = sum_over_processes if self.ddp else identity_reduce
        if not self.batch_dice:
            reduce = identity_reduce
        return dice(x, truth, batch_dice=self.batch_dice, mask=mask, reduce=reduce, smooth=self.smooth)


class RobustCrossEntropyLoss(nn.CrossEntropyLoss):
    """Cross entropy that takes a target with a channel axis (B, 1, *S), of any type."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Return the loss of logits (B, C, *S)."""
        if target.ndim == input.ndim:
            target = target[:, 0]
        return super().forward(input, target.long())


class TopKLoss(RobustCrossEntropyLoss):
    """Mean cross entropy of the `k` percent of all voxels where it is largest."""

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        k: float = 10,
        label_smoothing: float = 0,
    ) -> None:
        super().__init__(weight, None, ignore_index, None, "none", label_smoothing)
        self.k = k

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Return the loss of logits (B, C, *S)."""
        voxelwise = super().forward(input, target).flatten()
        return voxelwise.topk(int(voxelwise.numel() * self.k / 100), sorted=False).values.mean()


class DC_and_CE_loss(nn.Module):
    """`weight_ce` times cross entropy `ce` plus `weight_dice` times soft Dice `dc`, for labels."""

    def __init__(
        self,
        soft_dice_kwargs: dict[str, Any],
        ce_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: type[nn.Module] = SoftDiceLoss,
    ) -> None:
        super().__init__()
        ce_kwargs = dict(ce_kwargs) if ignore_label is None else {**ce_kwargs, "ignore_index": ignore_label}
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        self.ce: nn.Module = RobustCrossEntropyLoss(**ce_kwargs)
        self.dc: nn.Module = dice_class(apply_nonlin=softmax_helper_dim1, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, C, *S) and label values (B, 1, *S)."""
        planned = self._planned_loss(net_output, target)
        if planned is not None:
            loss, labels = planned
            return loss(net_output, target, labels=labels)
        return _weighted_sum(self, net_output, target)

    def _planned_loss(self, net_output: Tensor, target: Tensor) -> tuple[LabelLoss, Labels] | None:
        """Return our loss if the parts have nnU-Net's default values; None otherwise."""
        plain = type(self.dc) is MemoryEfficientSoftDiceLoss and type(self.ce) is RobustCrossEntropyLoss
        is_map = target.ndim == net_output.ndim and target.shape[1] == 1
        if not plain or not is_map or (self.weight_ce, self.weight_dice) != (1, 1) or _num_processes() > 1:
            return None
        dc, ce, ignore = self.dc, self.ce, self.ignore_label
        assert isinstance(dc, MemoryEfficientSoftDiceLoss)
        assert isinstance(ce, RobustCrossEntropyLoss)
        has_default_dice = dc.apply_nonlin is softmax_helper_dim1 and dc.smooth == SMOOTH and not dc.do_bg
        index = -100 if ignore is None else ignore
        has_default_ce = ce.weight is None and ce.label_smoothing == 0 and ce.reduction == "mean"
        if not has_default_dice or not has_default_ce or ce.ignore_index != index:
            return None
        if ignore is not None and not 1 <= ignore <= _MAX_PLAIN_IGNORE:
            return None
        if dc._forward_hooks or ce._forward_hooks:
            return None
        return LabelLoss(batch_dice=dc.batch_dice), _labels_up_to(ignore)


class DC_and_topk_loss(nn.Module):
    """`weight_ce` times the top-k cross entropy `ce` plus `weight_dice` times soft Dice `dc`, for labels."""

    def __init__(
        self,
        soft_dice_kwargs: dict[str, Any],
        ce_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        ce_kwargs = dict(ce_kwargs) if ignore_label is None else {**ce_kwargs, "ignore_index": ignore_label}
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        self.ce: nn.Module = TopKLoss(**ce_kwargs)
        self.dc: nn.Module = SoftDiceLoss(apply_nonlin=softmax_helper_dim1, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, C, *S) and label values (B, 1, *S)."""
        return _weighted_sum(self, net_output, target)


class DC_and_BCE_loss(nn.Module):
    """`weight_ce` times binary cross entropy `ce` plus `weight_dice` times soft Dice `dc`, for regions.

    With an ignore label the cross entropy is summed over the regions, as nnU-Net 2.8.1 does; `RegionLoss` of our own
    trainer takes their mean.
    """

    def __init__(
        self,
        bce_kwargs: dict[str, Any],
        soft_dice_kwargs: dict[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: type[nn.Module] = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        bce_kwargs = {**bce_kwargs, "reduction": "none"} if use_ignore_label else dict(bce_kwargs)
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.use_ignore_label = use_ignore_label
        self.ce: nn.Module = nn.BCEWithLogitsLoss(**bce_kwargs)
        self.dc: nn.Module = dice_class(apply_nonlin=torch.sigmoid, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, regions, *S) and their target; one more channel of it marks ignored voxels."""
        logits = net_output.to(torch.promote_types(net_output.dtype, torch.float32))
        if not self.use_ignore_label:
            ce = self.ce(logits, target.to(logits.dtype))
            plain: Tensor = self.weight_ce * ce + self.weight_dice * self.dc(logits, target)
            return plain
        mask, regions = ~target[:, -1:].bool(), target[:, :-1]
        voxelwise = self.ce(logits, regions.to(logits.dtype)) * mask
        ce = voxelwise.sum() / mask.sum().clamp_min(MIN_DENOMINATOR)
        total: Tensor = self.weight_ce * ce + self.weight_dice * self.dc(logits, regions, loss_mask=mask)
        return total


class DeepSupervisionWrapper(nn.Module):
    """The weighted sum of a loss over the resolutions.

    Attributes:
        loss: of one resolution, called with one entry of each argument.
        weight_factors: of each resolution, highest first; None: 1.
    """

    def __init__(self, loss: Callable[..., Tensor], weight_factors: Sequence[float] | None = None) -> None:
        super().__init__()
        if weight_factors is not None and not any(weight != 0 for weight in weight_factors):
            raise ValueError("DeepSupervisionWrapper: all weight_factors are 0; give one resolution a weight")
        self.weight_factors = None if weight_factors is None else tuple(weight_factors)
        self.loss = loss

    def forward(self, *args: Sequence[Tensor]) -> Tensor:
        """Return the sum; each argument is a list or tuple with one entry for each resolution."""
        if any(not isinstance(levels, list | tuple) for levels in args):
            found = ", ".join(type(levels).__name__ for levels in args)
            raise TypeError(f"DeepSupervisionWrapper got {found}; expected lists or tuples, one entry per resolution")
        weights = (1.0,) * len(args[0]) if self.weight_factors is None else self.weight_factors
        terms = [
            float(weight) * self.loss(*levels) for weight, *levels in zip(weights, *args, strict=False) if weight != 0
        ]
        if all(isinstance(term, Tensor) and term.ndim == 0 for term in terms):
            return torch.stack(terms).sum()  # in the order in which our own loss adds them
        return sum(terms[1:], start=terms[0])


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def sum_over_processes(part: Tensor) -> Tensor:
    """Return the sum over the processes of a training, with gradients; the tensor itself if there is one."""
    if _num_processes() == 1:
        return part
    total: Tensor = _SumOverProcesses.apply(part)  # type: ignore[no-untyped-call]
    return total


class AllGatherGrad(torch.autograd.Function):
    """Stacks the tensors of all processes along a new first axis, with gradients."""

    @staticmethod
    def forward(_context: Any, part: Tensor) -> Tensor:
        """Return (processes, ...)."""
        parts = [torch.zeros_like(part) for _ in range(_num_processes())]
        if len(parts) > 1:
            distributed.all_gather(parts, part.contiguous())
        else:
            parts = [part]
        return torch.stack(parts)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of this process's part."""
        if _num_processes() == 1:
            return gradients[0][0]
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def _num_processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _weighted_sum(loss: DC_and_CE_loss | DC_and_topk_loss, net_output: Tensor, target: Tensor) -> Tensor:
    """Return the sum of the parts of a loss of labels, with ignored voxels left out of both."""
    ignore = loss.ignore_label
    mask = None if ignore is None else target != ignore
    labels = target if mask is None else target.masked_fill(~mask, 0)
    has_truth = mask is None or bool(mask.any())
    dice_part: Tensor | float = loss.dc(net_output, labels, loss_mask=mask) if loss.weight_dice != 0 else 0
    ce_part: Tensor | float = loss.ce(net_output, target) if loss.weight_ce != 0 and has_truth else 0
    total = loss.weight_ce * ce_part + loss.weight_dice * dice_part
    return total if isinstance(total, Tensor) else net_output.sum() * 0.0


def _one_hot(output: Tensor, truth: Tensor) -> Tensor:
    """Return a target as 0 and 1 in the shape and type of the output (B, C, *S)."""
    if truth.shape == output.shape:
        return truth.to(output.dtype)
    if truth.ndim != output.ndim:
        truth = truth[:, None]
    return torch.zeros_like(output, requires_grad=False).scatter_(1, truth.long(), 1)


@cache
def _labels_up_to(ignore: int | None) -> Labels:
    """Return labels of which a loss reads only the ignore label."""
    if ignore is None:
        return Labels({BACKGROUND: 0, "1": 1})
    return Labels({BACKGROUND: 0, **{str(value): value for value in range(1, ignore)}, IGNORE: ignore})
