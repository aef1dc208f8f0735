"""Make the loss goldens with nnU-Net's own losses; run with a python that has nnunetv2 2.8.1 installed.

    python tests/golden/losses/make_losses.py

Logits, targets and the values that the reference gives for them: black-box behaviour, nothing of its code. `bce` is its
binary cross entropy alone, with which the deviation for regions with an ignore label can be told apart
(nnU-Net behaviour 8.6.4).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss
from torch import Tensor

HERE = Path(__file__).parent
HEADS = 4
IGNORE = 4
SHAPE = (6, 7, 5)
DEEP_SHAPES = (SHAPE, (3, 4, 3), (2, 2, 2))
DEEP_WEIGHTS = (2 / 3, 1 / 3, 0.0)


def label_losses(*, batch_dice: bool, ignore: int | None) -> dict[str, Any]:
    """Return the reference's losses for labels under our names."""
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    index = {} if ignore is None else {"ignore_index": ignore}
    losses: dict[str, Any] = {
        "dice_ce": DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss),
        "ce": RobustCrossEntropyLoss(**index),
        "topk10": TopKLoss(k=10, **index),
        "dice_topk10": DC_and_topk_loss(dice, {"k": 10}, ignore_label=ignore),
        "dice": DC_and_CE_loss(dice, {}, weight_ce=0, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss),
    }
    return losses


def region_losses(*, batch_dice: bool, ignore: bool) -> dict[str, Any]:
    """Return the reference's losses for regions under our names."""
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": True, "ddp": False}
    return {
        "dice_bce": DC_and_BCE_loss({}, dice, use_ignore_label=ignore),
        "dice": DC_and_BCE_loss({}, dice, weight_ce=0, use_ignore_label=ignore),
        "bce": DC_and_BCE_loss({}, dice, weight_dice=0, use_ignore_label=ignore),
    }


def main() -> None:
    """Write tensors to losses.npz and values to losses.json."""
    generator = torch.Generator().manual_seed(0)
    logits: list[Tensor] = [2 * torch.randn(3, HEADS, *shape, generator=generator) for shape in DEEP_SHAPES]
    known = [torch.randint(0, HEADS, (3, 1, *shape), generator=generator) for shape in DEEP_SHAPES]
    hidden = [torch.rand(3, 1, *shape, generator=generator) < 0.4 for shape in DEEP_SHAPES]
    partial = [labels.masked_fill(where, IGNORE) for labels, where in zip(known, hidden, strict=True)]
    sparse = known[0].masked_fill(torch.rand(3, 1, *SHAPE, generator=generator) > 0.05, IGNORE)
    regions = torch.rand(3, HEADS, *SHAPE, generator=generator) < 0.3
    regions[0, 1] = False
    flagged = torch.cat([regions, hidden[0]], 1)
    values: dict[str, float] = {}
    for batch_dice in (False, True):
        kind = "batch" if batch_dice else "sample"
        for name, target, ignore in (("labels", known, None), ("ignore", partial, IGNORE)):
            for loss_name, loss in label_losses(batch_dice=batch_dice, ignore=ignore).items():
                values[f"{name}/{kind}/{loss_name}"] = float(loss(logits[0], target[0]))
                wrapped = DeepSupervisionWrapper(loss, DEEP_WEIGHTS)
                values[f"{name}_deep/{kind}/{loss_name}"] = float(wrapped(logits, target))
        for loss_name, loss in label_losses(batch_dice=batch_dice, ignore=IGNORE).items():
            values[f"sparse/{kind}/{loss_name}"] = float(loss(logits[0], sparse))
        for name, target, flag in (("regions", regions, False), ("regions_ignore", flagged, True)):
            for loss_name, loss in region_losses(batch_dice=batch_dice, ignore=flag).items():
                values[f"{name}/{kind}/{loss_name}"] = float(loss(logits[0], target))
    arrays = {f"logits/{index}": level.numpy() for index, level in enumerate(logits)}
    arrays |= {f"labels/{index}": level.numpy().astype(np.int16) for index, level in enumerate(known)}
    arrays |= {f"ignore/{index}": level.numpy().astype(np.int16) for index, level in enumerate(partial)}
    arrays |= {"sparse/0": sparse.numpy().astype(np.int16), "regions/0": regions.numpy()}
    np.savez_compressed(HERE / "losses.npz", **arrays, **{"regions_ignore/0": flagged.numpy()})
    (HERE / "losses.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
