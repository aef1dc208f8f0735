"""Log what the steps of an epoch returned under nnU-Net's names of the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from segwright.training.distributed.context import SINGLE, DistributedContext
from segwright.training.monitoring.logbook import Logbook
from segwright.training.validation.online import PseudoDice


def log_learning_rates(logbook: Logbook, rates: Sequence[float], epoch: int) -> None:
    """Log the learning rate of the first parameter group, and those of all groups if they differ."""
    logbook.log("lrs", rates[0], epoch)
    if len(set(rates)) > 1:
        logbook.log("lrs_per_group", rates, epoch)


def log_losses(
    logbook: Logbook,
    losses: Sequence[Tensor],
    epoch: int,
    cases_of: Callable[[list[int]], Iterable[str]],
    distributed: DistributedContext = SINGLE,
) -> list[str]:
    """Log the mean loss of the training steps; return a line about those that were skipped, if any.

    Args:
        logbook: where to log.
        losses: of the steps, NaN for a skipped one.
        epoch: the current one.
        cases_of: returns the cases in the batches of steps.
        distributed: the processes whose losses are averaged.
    """
    values = distributed.mean(torch.stack([loss.float() for loss in losses])).cpu()
    finite = torch.isfinite(values)
    logbook.log("train_losses", float(values[finite].mean()), epoch)
    logbook.log("steps", len(values), epoch)
    logbook.log("skipped_steps", int((~finite).sum()), epoch)
    skipped = torch.nonzero(~finite).flatten().tolist()
    if not skipped:
        return []
    return [f"{len(skipped)} steps skipped, loss or gradient not finite; cases: {', '.join(cases_of(skipped))}"]


def log_pseudo_dice(logbook: Logbook, result: PseudoDice, epoch: int) -> None:
    """Log validation loss, pseudo Dice and the number of true voxels of each class."""
    logbook.log("val_losses", result.loss, epoch)
    logbook.log("dice_per_class_or_region", result.dice, epoch)
    logbook.log("true_voxels_per_class", result.true_voxels, epoch)
    logbook.log("mean_fg_dice", result.mean, epoch)
