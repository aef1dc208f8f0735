"""Focal, Tversky and skeleton recall losses against plain numpy formulas; with several processes; their options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from segwright.core.errors import ConfigError
from segwright.data.labels import Labels
from segwright.training.losses.builtin import OPTIONS, build_loss, target_channel
from segwright.training.losses.skeletons import tubes

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
IGNORE = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
OF_REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
REGIONS = Labels.from_dataset_json({"labels": OF_REGIONS, "regions_class_order": [1, 2]})
SMOOTH = 1e-5
Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def samples(seed: int, labels: Labels, shape: tuple[int, ...]) -> tuple[Array, NDArray[np.int64]]:
    """Return logits (B, heads, *S) and label values (B, 1, *S) of two samples."""
    rng = np.random.default_rng(seed)
    highest = 3 if labels.ignore_label is not None else 2
    return rng.normal(0, 3, (2, labels.num_heads, *shape)), rng.integers(0, highest + 1, (2, 1, *shape))


def parts_of(labels: Labels, logits: Array, values: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Return probabilities and truth (B, classes, *S) of the foreground or the regions, and which voxels count."""
    known = (values != 3).astype(float)
    if labels.has_regions:
        return 1 / (1 + np.exp(-logits)), np.concatenate((values % 3 > 0, values == 2), axis=1).astype(float), known
    return softmax(logits)[:, 1:], np.concatenate((values == 1, values == 2), axis=1).astype(float), known


def target_of(labels: Labels, values: NDArray[np.int64]) -> Tensor:
    if not labels.has_regions:
        return torch.from_numpy(values).to(torch.int16)
    return torch.from_numpy(np.concatenate((values % 3 > 0, values == 2, values == 3), axis=1))


def overlap(p: Array, truth: Array, known: Array, *, alpha: float, beta: float, batch: bool, weights: Array) -> float:
    axes = tuple(range(2, p.ndim)) if not batch else (0, *range(2, p.ndim))
    tp = (p * truth * known).sum(axes)
    fp, fn = (p * (1 - truth) * known).sum(axes), ((1 - p) * truth * known).sum(axes)
    scores = (tp + SMOOTH) / (tp + alpha * fp + beta * fn + SMOOTH)
    return float(-(scores * weights / weights.mean()).mean())


def focal(labels: Labels, logits: Array, values: NDArray[np.int64], gamma: float, weights: Array) -> float:
    known = values != 3
    if labels.has_regions:
        p, truth, _ = parts_of(labels, logits, values)
        right = np.where(truth == 1, p, 1 - p)
        each = -((1 - right) ** gamma) * np.log(right) * weights.reshape(-1, *(1,) * (p.ndim - 2))
        return float((each * known).sum() / (known.sum() * p.shape[1]))
    index = np.where(known, values, 0)
    right = np.take_along_axis(softmax(logits), index, axis=1)
    share = weights[index] * known
    return float((-((1 - right) ** gamma) * np.log(right) * share).sum() / share.sum())


@given(
    seed=st.integers(0, 10**6),
    labels=st.sampled_from([LABELS, IGNORE, REGIONS]),
    shape=st.sampled_from([(3, 4), (2, 3, 2)]),
    batch=st.booleans(),
    factors=st.sampled_from([None, (1.0, 2.0, 4.0)]),
    numbers=st.tuples(st.floats(0, 3), st.floats(0.1, 2)),
)
@settings(max_examples=40, deadline=None)
def test_losses_are_the_formulas_of_their_papers(
    seed: int, labels: Labels, shape: tuple[int, ...], batch: bool, factors: Any, numbers: tuple[float, float]
) -> None:
    logits, values = samples(seed, labels, shape)
    factors = None if factors is None else factors[: labels.num_heads]
    weights = np.ones(labels.num_heads) if factors is None else np.array(factors) / np.mean(factors)
    foreground = weights if labels.has_regions else weights[1:]
    p, truth, known = parts_of(labels, logits, values)
    common: Any = {"batch": batch, "weights": foreground}
    first, second = numbers

    usual = target_of(labels, values)

    def value(name: str, target: Tensor = usual, **kwargs: float) -> float:
        loss = build_loss(labels, batch_dice=batch, reference=name, kwargs=kwargs, class_weights=factors)
        return float(loss(torch.from_numpy(logits), target))

    dice = overlap(p, truth, known, alpha=0.5, beta=0.5, **common)
    assert value("focal", gamma=first) == pytest.approx(focal(labels, logits, values, first, weights), rel=1e-5)
    assert value("dice_focal") == pytest.approx(focal(labels, logits, values, 2, weights) + dice, rel=1e-4, abs=1e-5)
    assert value("tversky", alpha=first, beta=second) == pytest.approx(
        overlap(p, truth, known, alpha=first, beta=second, **common), rel=1e-5
    )
    tube = np.random.default_rng(seed).random(values.shape) < 0.5
    target = torch.cat((usual, torch.from_numpy(tube).to(usual.dtype)), dim=1)
    recall = overlap(p, truth * tube, known, alpha=0, beta=1, **common)
    expected = value("dice_bce" if labels.has_regions else "dice_ce") + second * recall
    assert value("skeleton_recall", target, weight=second) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_focal_of_gamma_zero_is_the_cross_entropy_and_even_tversky_the_dice(labels: Labels) -> None:
    logits, values = samples(1, labels, (5, 6))
    output, target = torch.from_numpy(logits), target_of(labels, values)

    def value(name: str | None, **kwargs: float) -> float:
        return float(build_loss(labels, batch_dice=True, reference=name, kwargs=kwargs)(output, target))

    assert value("dice_focal", gamma=0) == pytest.approx(value(None), rel=1e-9)
    assert value("tversky", alpha=0.5, beta=0.5) == pytest.approx(value("dice"), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_of_certain_voxels_is_finite(gamma: float) -> None:
    for labels, heads in ((LABELS, 3), (REGIONS, 2)):
        output = torch.full((1, heads, 2, 2), -200.0)
        output[:, 0] = 200.0
        output.requires_grad_()
        target = target_of(labels, np.array([[[[0, 1], [2, 0]]]]))
        build_loss(labels, batch_dice=True, reference="focal", kwargs={"gamma": gamma})(output, target).backward()
        assert output.grad is not None
        assert torch.isfinite(output.grad).all()


def recorder(parts: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a sum over one process that appends what it is given."""

    def reduce(part: Tensor) -> Tensor:
        parts.append(part)
        return part

    return reduce


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("labels", [IGNORE, REGIONS], ids=["labels", "regions"])
def test_two_processes_have_the_loss_of_one(name: str, batch: bool, labels: Labels) -> None:
    logits, values = samples(5, labels, (6, 6))
    output, target = torch.from_numpy(logits), target_of(labels, values)
    if name == "skeleton_recall":
        target = torch.cat((target, tubes(torch.from_numpy(values), labels).to(target.dtype)), dim=1)
    halves = [(output[:1], target[:1]), (output[1:], target[1:])]
    contributions = []
    for pair in halves:
        own: list[Tensor] = []
        build_loss(labels, batch_dice=batch, reference=name, reduce=recorder(own))(*pair)
        contributions.append(own)
    total = iter([one + other for one, other in zip(*contributions, strict=True)])
    shared = build_loss(labels, batch_dice=batch, reference=name, reduce=lambda part: next(total))
    whole = build_loss(labels, batch_dice=batch, reference=name)
    assert float(shared(*halves[0])) == pytest.approx(float(whole(output, target)), rel=1e-9)


def test_every_resolution_has_its_own_tubes() -> None:
    logits, values = samples(3, LABELS, (8, 8))
    output, full = torch.from_numpy(logits), target_of(LABELS, values)
    target = torch.cat((full, tubes(full, LABELS).to(full.dtype)), dim=1)
    outputs, targets = [output, output[..., ::2, ::2], output[..., ::4, ::4]], [target, target[..., ::2, ::2], target]
    loss = build_loss(LABELS, batch_dice=True, reference="skeleton_recall", num_outputs=3)
    single = build_loss(LABELS, batch_dice=True, reference="skeleton_recall")
    expected = [float(single(*pair)) for pair in zip(outputs[:2], targets[:2], strict=True)]
    assert float(loss(outputs, targets)) == pytest.approx(2 / 3 * expected[0] + 1 / 3 * expected[1])


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("focal", {"gama": 2}, "loss 'focal': unknown option 'gama' in loss_kwargs; did you mean 'gamma'"),
        ("focal", {"gamma": -1}, "loss 'focal': gamma is -1; expected a finite number >= 0"),
        ("tversky", {"alpha": "high"}, "alpha is 'high'; expected a finite number"),
        ("tversky", {"alpha": 0, "beta": 0}, "alpha and beta are 0, so no error counts"),
        ("skeleton_recall", {"weight": True}, "weight is True; expected a finite number"),
        ("ce", {"gamma": 2}, "for a loss of one's own; 'ce' takes none"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss(LABELS, batch_dice=True, reference=name, kwargs=kwargs)


def test_a_target_without_tubes_is_refused() -> None:
    logits, values = samples(3, LABELS, (4, 4))
    loss = build_loss(LABELS, batch_dice=True, reference="skeleton_recall")
    with pytest.raises(ConfigError, match="the target has 1 channels instead of 2; take the loaders of the trainer"):
        loss(torch.from_numpy(logits), target_of(LABELS, values))
    assert target_channel("dice_ce") is None
