"""Losses against plain formulas in float64, their special cases, and zero gradients of ignored voxels."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from segwright.core.errors import ConfigError
from segwright.data.labels import Labels
from segwright.training.losses.builtin import build_loss, deep_supervision_weights
from segwright.training.losses.combined import LabelLoss, RegionLoss

PLAIN = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
PLAIN_IGNORE = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
REGIONS = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2], "core": 2, "rim": 1}, "regions_class_order": [1, 2, 1]}
)
REGIONS_IGNORE = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2], "core": 2, "rim": 1, "ignore": 3}, "regions_class_order": [1, 2, 1]}
)
SHAPE = (4, 6, 5)
SMOOTH = 1e-5


def logits(channels: int, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *SHAPE, generator=torch.Generator().manual_seed(seed))


def label_target(highest: int, seed: int = 1, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, highest + 1, (batch, 1, *SHAPE), generator=generator, dtype=torch.int16)


def region_target(channels: int, seed: int = 1) -> Tensor:
    return torch.rand(2, channels, *SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.4


def plain_dice(p: Tensor, truth: Tensor, mask: Tensor, batch_dice: bool) -> float:
    """Voxel by voxel sums in float64, one class at a time."""
    values = []
    for channel in range(p.shape[1]):
        sums = []
        for sample in range(len(p)):
            inside = mask[sample, 0]
            a, b = p[sample, channel][inside].double(), truth[sample, channel][inside].double()
            sums.append([float((a * b).sum()), float(a.sum() + b.sum())])
        pairs = [[sum(column) for column in zip(*sums, strict=True)]] if batch_dice else sums
        values += [(2 * overlap + SMOOTH) / (total + SMOOTH) for overlap, total in pairs]
    return -sum(values) / len(values)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("labels", [PLAIN, PLAIN_IGNORE], ids=["all", "ignore"])
def test_dice_ce_equals_the_plain_formula(labels: Labels, batch_dice: bool) -> None:
    output, target = logits(3), label_target(2 if labels is PLAIN else 3)
    mask = target != 3
    p = output.double().softmax(1)
    truth = torch.stack([target[:, 0] == value for value in range(3)], 1)
    log_likelihood = (p.log() * truth).sum(1, keepdim=True)[mask].sum()
    expected = float(-log_likelihood / mask.sum()) + plain_dice(p[:, 1:], truth[:, 1:], mask, batch_dice)
    found = LabelLoss(batch_dice=batch_dice)(output, target, labels=labels)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("labels", [REGIONS, REGIONS_IGNORE], ids=["all", "ignore"])
def test_dice_bce_equals_the_plain_formula_as_a_mean_over_known_voxels_and_regions(
    labels: Labels, batch_dice: bool
) -> None:
    output, target = logits(3), region_target(3 if labels is REGIONS else 4)
    mask = ~target[:, 3:] if labels is REGIONS_IGNORE else torch.ones_like(target[:, :1])
    p, truth = output.double().sigmoid(), target[:, :3]
    likelihood = torch.where(truth, p, 1 - p)
    known = mask.expand_as(truth)
    expected = float(-likelihood[known].log().mean()) + plain_dice(p, truth, mask, batch_dice)
    found = RegionLoss(batch_dice=batch_dice)(output, target, labels=labels)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_bce_has_the_same_weight_with_an_unused_ignore_label() -> None:
    output, target = logits(3), region_target(3)
    unused = torch.cat([target, torch.zeros_like(target[:, :1])], 1)
    without = RegionLoss(batch_dice=True)(output, target, labels=REGIONS)
    torch.testing.assert_close(RegionLoss(batch_dice=True)(output, unused, labels=REGIONS_IGNORE), without)


def own_loss(output: Tensor, target: Tensor, *, labels: Labels) -> Tensor:
    """A user's loss that knows nothing of ignored voxels."""
    if labels.has_regions:
        return torch.nn.functional.binary_cross_entropy_with_logits(output, target.to(output.dtype))
    return torch.nn.functional.cross_entropy(output, target[:, 0].long())


@pytest.mark.parametrize("reference", [None, f"{__name__}:own_loss"], ids=["built in", "own"])
@pytest.mark.parametrize("labels", [PLAIN_IGNORE, REGIONS_IGNORE], ids=["labels", "regions"])
def test_gradient_is_exactly_zero_at_ignored_voxels_and_not_elsewhere(labels: Labels, reference: str | None) -> None:
    output = logits(3).requires_grad_()
    target = region_target(4) if labels.has_regions else label_target(3)
    ignored = (target[:, 3:] if labels.has_regions else target == 3).expand_as(output)
    build_loss(labels, batch_dice=False, reference=reference)(output, target).backward()
    assert output.grad is not None
    assert torch.count_nonzero(output.grad[ignored]) == 0
    assert torch.count_nonzero(output.grad[~ignored]) == int((~ignored).sum())


@pytest.mark.parametrize("labels", [PLAIN_IGNORE, REGIONS_IGNORE], ids=["labels", "regions"])
def test_loss_of_a_batch_without_annotation_is_finite(labels: Labels) -> None:
    output = logits(3).requires_grad_()
    target = torch.full((2, 1, *SHAPE), 3)
    if labels.has_regions:
        target = torch.cat([torch.zeros(2, 3, *SHAPE), torch.ones(2, 1, *SHAPE)], 1).bool()
    loss = build_loss(labels, batch_dice=True)(output, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-1.0)
    assert output.grad is not None
    assert torch.count_nonzero(output.grad) == 0


def test_channels_last_bf16_logits_are_summed_in_float32() -> None:
    output, target = logits(3).bfloat16(), label_target(2)
    loss = partial(LabelLoss(batch_dice=True), labels=PLAIN)
    layout = output.contiguous(memory_format=torch.channels_last_3d)
    assert loss(layout, target).dtype == torch.float32
    torch.testing.assert_close(loss(layout, target), loss(output.float(), target))


@pytest.mark.parametrize(
    ("count", "weights"),
    [
        (1, [1.0]),
        (2, [1.0, 0.0]),
        (4, [0.5714, 0.2857, 0.1429, 0.0]),
        (6, [0.5161, 0.2581, 0.1290, 0.0645, 0.0323, 0.0]),
    ],
)
def test_deep_supervision_weights_are_the_reference_s(count: int, weights: list[float]) -> None:
    assert [round(weight, 4) for weight in deep_supervision_weights(count)] == pytest.approx(weights)


def test_deep_supervision_leaves_the_lowest_output_out() -> None:
    outputs = [logits(3, seed).requires_grad_() for seed in range(3)]
    targets: list[Tensor] = [label_target(2, seed) for seed in range(3)]
    total = build_loss(PLAIN, batch_dice=True, num_outputs=3)(outputs, targets)
    total.backward()
    plain = [output.detach() for output in outputs]
    parts = [float(LabelLoss(batch_dice=True)(*pair, labels=PLAIN)) for pair in zip(plain, targets, strict=True)]
    assert float(total.detach()) == pytest.approx((2 * parts[0] + parts[1]) / 3, rel=1e-5)
    assert outputs[2].grad is None


def test_one_output_of_a_deeply_supervised_network_is_compared_with_the_full_target() -> None:
    output, target = logits(3), label_target(2)
    loss = build_loss(PLAIN, batch_dice=True, num_outputs=2)
    torch.testing.assert_close(
        loss(output, [target, target[:, :, ::2]]), LabelLoss(batch_dice=True)(output, target, labels=PLAIN)
    )


@pytest.mark.parametrize(
    ("labels", "reference", "words"),
    [
        (PLAIN, "dice_cee", "did you mean 'dice_ce'"),
        (PLAIN, "dice_bce", "does not support labels"),
        (REGIONS, "dice_ce", "does not support regions"),
        (PLAIN, f"{__name__}:SHAPE", "is not callable"),
    ],
)
def test_wrong_loss_is_refused_with_the_remedy(labels: Labels, reference: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss(labels, batch_dice=True, reference=reference)


def test_perfect_logits_give_the_smallest_loss() -> None:
    target = label_target(2)
    perfect = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1) * 40.0
    loss: Any = build_loss(PLAIN, batch_dice=False)(perfect, target)
    assert math.isclose(float(loss), -1.0, abs_tol=1e-5)
