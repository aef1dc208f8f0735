"""The losses have nnU-Net's numbers, by plain formulas, and those of our own trainer to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.compat.nnunet.names.helpers import softmax_helper_dim1
from segwright.compat.nnunet.names.losses import (
    AllGatherGrad,
    DC_and_BCE_loss,
    DC_and_CE_loss,
    DC_and_topk_loss,
    DeepSupervisionWrapper,
    MemoryEfficientSoftDiceLoss,
    RobustCrossEntropyLoss,
    SoftDiceLoss,
    TopKLoss,
    get_tp_fp_fn_tn,
)
from segwright.data.labels import Labels
from segwright.training.losses.builtin import build_loss, deep_supervision_weights
from segwright.training.losses.combined import RegionLoss

SHAPE = (2, 3, 4, 5, 6)
DICE = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 3, (2, 1, 4, 5, 6), generator=torch.Generator().manual_seed(2)).to(torch.int16)


def one_hot(labels: Tensor) -> Tensor:
    return torch.stack([labels[:, 0] == value for value in range(3)], 1).float()


def mean_dice(p: Tensor, truth: Tensor, *, smooth: float, axes: tuple[int, ...]) -> Tensor:
    overlap, total = (p * truth).sum(axes), (p + truth).sum(axes)
    return ((2 * overlap + smooth) / (total + smooth)).mean()


def test_counts_of_soft_predictions(logits: Tensor, labels: Tensor) -> None:
    p, truth = logits.softmax(1), one_hot(labels)
    counts = get_tp_fp_fn_tn(p, labels)
    expected = (p * truth, p * (1 - truth), (1 - p) * truth, (1 - p) * (1 - truth))
    for found, part in zip(counts, expected, strict=True):
        torch.testing.assert_close(found, part.sum((2, 3, 4)))


def test_counts_within_a_mask_over_the_batch(labels: Tensor) -> None:
    mask = torch.zeros(2, 1, 4, 5, 6, dtype=torch.bool)
    mask[0, 0, 0] = True
    truth = one_hot(labels)
    tp, fp, fn, _ = get_tp_fp_fn_tn(truth.half(), labels, axes=[0, 2, 3, 4], mask=mask)
    assert tp.sum() == 30
    assert fp.sum() == fn.sum() == 0
    assert tp.dtype == torch.float32


def test_counts_of_many_voxels_in_half_precision() -> None:
    tp, *_ = get_tp_fp_fn_tn(torch.ones(1, 1, 300, 300, dtype=torch.half), torch.ones(1, 1, 300, 300))
    assert tp.item() == 90000


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("do_bg", [False, True])
@pytest.mark.parametrize("cls", [SoftDiceLoss, MemoryEfficientSoftDiceLoss])
def test_dice(logits: Tensor, labels: Tensor, cls: Any, do_bg: bool, batch_dice: bool) -> None:
    loss = cls(apply_nonlin=softmax_helper_dim1, batch_dice=batch_dice, do_bg=do_bg, smooth=0.5, ddp=False)
    first = 0 if do_bg else 1
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    expected = -mean_dice(logits.softmax(1)[:, first:], one_hot(labels)[:, first:], smooth=0.5, axes=axes)
    torch.testing.assert_close(loss(logits, labels), expected)


def test_true_positives_have_a_lower_limit(logits: Tensor, labels: Tensor) -> None:
    loss = SoftDiceLoss(softmax_helper_dim1, batch_dice=True, clip_tp=1e6)
    assert loss(logits, labels).item() == pytest.approx(-1, abs=1e-3)


def test_robust_cross_entropy_takes_a_channel_axis(logits: Tensor, labels: Tensor) -> None:
    expected = nn.functional.cross_entropy(logits, labels[:, 0].long())
    torch.testing.assert_close(RobustCrossEntropyLoss()(logits, labels.float()), expected)


def test_topk_is_the_mean_of_the_largest(logits: Tensor, labels: Tensor) -> None:
    values = nn.functional.cross_entropy(logits, labels[:, 0].long(), reduction="none").flatten()
    expected = values.sort(descending=True).values[: int(240 * 0.2)].mean()
    torch.testing.assert_close(TopKLoss(k=20)(logits, labels), expected)


@pytest.mark.parametrize("ignore", [None, 3])
def test_dice_and_cross_entropy_by_formula(logits: Tensor, labels: Tensor, ignore: int | None) -> None:
    weights = {"weight_ce": 0.5, "weight_dice": 2.0}
    loss = DC_and_CE_loss(DICE, {}, **weights, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    mask = torch.ones_like(labels, dtype=torch.bool)
    if ignore is not None:
        mask[:, :, 0] = False
    target = torch.where(mask, labels, torch.tensor(3, dtype=labels.dtype))
    voxelwise = nn.functional.cross_entropy(logits, labels[:, 0].long(), reduction="none")
    ce = voxelwise[mask[:, 0]].mean()
    p, truth = (logits.softmax(1) * mask)[:, 1:], (one_hot(labels) * mask)[:, 1:]
    dice = mean_dice(p, truth, smooth=1e-5, axes=(0, 2, 3, 4))
    torch.testing.assert_close(loss(logits, target), 0.5 * ce - 2 * dice)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_default_parts_give_our_loss_to_the_last_bit(
    logits: Tensor, labels: Tensor, batch_dice: bool, ignore: bool
) -> None:
    names = {"background": 0, "a": 1, **({"ignore": 2} if ignore else {"b": 2})}
    logits = logits.detach()[:, : 2 if ignore else 3].requires_grad_()
    ours = build_loss(Labels(names), batch_dice=batch_dice, num_outputs=3)
    loss = DC_and_CE_loss(
        {**DICE, "batch_dice": batch_dice}, {}, ignore_label=2 if ignore else None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    wrapped = DeepSupervisionWrapper(loss, deep_supervision_weights(3))
    expected = ours([logits] * 3, [labels] * 3)
    found = wrapped([logits] * 3, [labels] * 3)
    assert torch.equal(found, expected)
    (first,), (second,) = torch.autograd.grad(expected, logits), torch.autograd.grad(found, logits)
    assert torch.equal(first, second)


def test_default_parts_equal_the_general_sum(logits: Tensor, labels: Tensor) -> None:
    loss = DC_and_CE_loss(DICE, {}, dice_class=MemoryEfficientSoftDiceLoss)
    plain = loss(logits, labels)
    loss.weight_ce = loss.weight_dice = 2
    torch.testing.assert_close(loss(logits, labels), 2 * plain)


def test_exchanged_parts_are_used(logits: Tensor, labels: Tensor) -> None:
    loss = DC_and_CE_loss(DICE, {}, dice_class=MemoryEfficientSoftDiceLoss)

    class Zero(nn.Module):
        def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
            return x.sum() * 0

    loss.dc = Zero()
    torch.testing.assert_close(loss(logits, labels), loss.ce(logits, labels))


def test_nothing_annotated_leaves_no_cross_entropy(logits: Tensor) -> None:
    loss = DC_and_CE_loss(DICE, {}, ignore_label=3)
    target = torch.full((2, 1, 4, 5, 6), 3)
    assert loss(logits, target).item() == pytest.approx(-1)
    loss.weight_dice = 2
    assert loss(logits, target).item() == pytest.approx(-2)


def test_regions(logits: Tensor) -> None:
    target = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) > 0.5
    loss = DC_and_BCE_loss({}, {**DICE, "do_bg": True})
    bce = nn.functional.binary_cross_entropy_with_logits(logits, target.float())
    expected = bce - mean_dice(logits.sigmoid(), target.float(), smooth=1e-5, axes=(0, 2, 3, 4))
    torch.testing.assert_close(loss(logits, target), expected)
    declared = {"background": 0, "a": (1, 2), "b": 2, "c": 3}
    labels = Labels(declared, regions_class_order=(1, 2, 3))
    assert torch.equal(loss(logits, target), RegionLoss(batch_dice=True)(logits, target, labels=labels))


def test_regions_with_ignored_voxels_sum_the_cross_entropy_over_regions(logits: Tensor) -> None:
    target = torch.rand((2, 4, 4, 5, 6), generator=torch.Generator().manual_seed(3)) > 0.5
    loss = DC_and_BCE_loss({}, {**DICE, "do_bg": True}, use_ignore_label=True)
    mask, truth = ~target[:, -1:], target[:, :-1].float()
    voxelwise = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    dice = mean_dice(logits.sigmoid() * mask, truth * mask, smooth=1e-5, axes=(0, 2, 3, 4))
    torch.testing.assert_close(loss(logits, target), (voxelwise * mask).sum() / mask.sum() - dice)


def test_dice_and_topk(logits: Tensor, labels: Tensor) -> None:
    loss = DC_and_topk_loss(DICE, {"k": 10})
    expected = TopKLoss(k=10)(logits, labels) + SoftDiceLoss(softmax_helper_dim1, **DICE)(logits, labels)
    torch.testing.assert_close(loss(logits, labels), expected)


def test_deep_supervision_skips_weight_0_and_passes_every_argument() -> None:
    called = []

    def loss(output: Tensor, target: Tensor, more: int) -> Tensor:
        called.append(more)
        return output - target

    wrapped = DeepSupervisionWrapper(loss, [0.75, 0, 0.25])
    outputs = (torch.tensor(4.0), torch.tensor(5.0), torch.tensor(6.0))
    assert wrapped(outputs, [torch.tensor(0.0)] * 3, [1, 2, 3]).item() == 4.5
    assert called == [1, 3]
    assert wrapped.weight_factors == (0.75, 0, 0.25)


def test_deep_supervision_needs_lists_and_a_weight() -> None:
    with pytest.raises(TypeError, match="got Tensor, list; expected lists or tuples"):
        DeepSupervisionWrapper(nn.MSELoss())(torch.zeros(1), [torch.zeros(1)])
    with pytest.raises(ValueError, match="all weight_factors are 0"):
        DeepSupervisionWrapper(nn.MSELoss(), [0, 0])


def test_gathering_in_one_process_adds_an_axis() -> None:
    part = torch.ones(2, requires_grad=True)
    gathered = AllGatherGrad.apply(part)  # type: ignore[no-untyped-call]
    gathered.sum().backward()
    assert gathered.shape == (1, 2)
    assert part.grad is not None
    assert part.grad.tolist() == [1, 1]
