"""Online validation: the pseudo Dice, over all voxels of an epoch's validation patches instead of over cases."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from segwright.core.device import MPS
from segwright.data.labels import Labels
from segwright.training.distributed.context import SINGLE, DistributedContext


class ValidationStep(TypedDict):
    """One step's loss (scalar) and counts (foreground classes or regions), all on the device."""

    loss: Tensor
    tp_hard: Tensor
    fp_hard: Tensor
    fn_hard: Tensor


class PseudoDice(NamedTuple):
    """An epoch's mean validation loss; Dice and number of true voxels of each foreground class or region.

    A Dice is NaN for a class that is neither present nor predicted, and 0 for one that is predicted but not present.
    """

    loss: float
    dice: list[float]
    true_voxels: list[int]

    @property
    def mean(self) -> float:
        """Mean Dice of the classes that have one; NaN if none has."""
        present = [value for value in self.dice if value == value]
        return sum(present) / len(present) if present else float("nan")


def confusion(output: Tensor, target: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Return true positives, false positives and false negatives of each foreground class or region.

    Ignored voxels do not count (nnU-Net behaviour 8.7).

    Args:
        output: logits (B, C, *S) of the full resolution.
        target: label values (B, 1, *S), or regions (B, R, *S), with one more channel for ignored voxels if any; further
            channels do not count.
        labels: of the dataset.

    Returns:
        Three int64 tensors (classes,).
    """
    if labels.has_regions:
        return _regions(output, target, has_ignore=labels.ignore_label is not None)
    num_classes = output.shape[1]
    predicted, truth = output.argmax(1).flatten(), target[:, 0].long().flatten()
    weight = torch.ones_like(truth)
    if labels.ignore_label is not None:
        ignored = truth == labels.ignore_label
        weight, truth = weight.masked_fill(ignored, 0), truth.masked_fill(ignored, 0)
    tp = _class_sums(truth, weight * (predicted == truth), num_classes)
    num_predicted, num_true = _class_sums(predicted, weight, num_classes), _class_sums(truth, weight, num_classes)
    return tp[1:], (num_predicted - tp)[1:], (num_true - tp)[1:]


def pseudo_dice(steps: list[ValidationStep], distributed: DistributedContext = SINGLE) -> PseudoDice:
    """Return the metrics over the validation steps of all ranks.

    This is the only time in an epoch when the host waits for the device.
    """
    loss = distributed.mean(torch.stack([step["loss"].detach().float() for step in steps]).mean())
    counts = [torch.stack([step["tp_hard"], step["fp_hard"], step["fn_hard"]]) for step in steps]
    tp, fp, fn = distributed.all_reduce(torch.stack(counts).sum(0)).cpu()  # MPS has no float64
    dice = (2 * tp).double() / (2 * tp + fp + fn)
    return PseudoDice(float(loss), dice.tolist(), (tp + fn).tolist())


def _class_sums(classes: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    """Return the sum of `weight` (int64) over the voxels of each class; `classes` is as long."""
    if classes.device.type == MPS:  # index_add refuses int64 there, and float32 counts only to 2^24
        return torch.stack([(weight * (classes == index)).sum() for index in range(num_classes)])
    return torch.zeros(num_classes, dtype=torch.int64, device=classes.device).index_add(0, classes, weight)


def _regions(output: Tensor, target: Tensor, *, has_ignore: bool) -> tuple[Tensor, Tensor, Tensor]:
    num_regions = output.shape[1]
    predicted, truth = output > 0, target[:, :num_regions].bool()
    if has_ignore:
        known = ~target[:, num_regions : num_regions + 1].bool()
        predicted, truth = predicted & known, truth & known

    def count(where: Tensor) -> Tensor:
        return where.transpose(0, 1).flatten(1).sum(1)

    return count(predicted & truth), count(predicted & ~truth), count(~predicted & truth)
