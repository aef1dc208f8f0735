"""Loss values against nnU-Net's on stored tensors; class weights; ignored voxels under every built-in loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segwright.core.errors import ConfigError
from segwright.data.labels import Labels
from segwright.training.config import TrainConfig
from segwright.training.losses.builtin import LABEL_LOSSES, LOSSES, REGION_LOSSES, build_loss, target_channel

GOLDEN = Path(__file__).parents[2] / "golden" / "losses"
VALUES: dict[str, float] = json.loads((GOLDEN / "losses.json").read_text())
NAMES = {"background": 0, "a": 1, "b": 2, "c": 3}
ORDER = {"regions_class_order": [1, 2, 3, 4]}
REGION_NAMES: dict[str, Any] = {"background": 0, "all": [1, 2, 3], "ab": [1, 2], "a": 1, "c": 3}
PLAIN = Labels.from_dataset_json({"labels": NAMES})
IGNORE = Labels.from_dataset_json({"labels": {**NAMES, "ignore": 4}})
REGIONS = Labels.from_dataset_json({"labels": REGION_NAMES, **ORDER})
REGIONS_IGNORE = Labels.from_dataset_json({"labels": {**REGION_NAMES, "ignore": 4}, **ORDER})
LABELS = {"labels": PLAIN, "ignore": IGNORE, "sparse": IGNORE, "regions": REGIONS, "regions_ignore": REGIONS_IGNORE}
EVERY_LOSS = [
    *((kind, name) for kind in ("labels", "ignore", "sparse") for name in LABEL_LOSSES),
    *((kind, name) for kind in ("regions", "regions_ignore") for name in REGION_LOSSES),
]
DEVIATING = ("regions_ignore/batch/dice_bce", "regions_ignore/sample/dice_bce")


def tensors(name: str) -> list[Tensor]:
    with np.load(GOLDEN / "losses.npz") as arrays:
        keys = sorted(key for key in arrays.files if key.startswith(f"{name}/"))
        return [torch.from_numpy(arrays[key]) for key in keys]


def target_of(kind: str, name: str) -> Tensor:
    """Return the target of the highest resolution, with a channel that a loss needs."""
    target = tensors(kind)[0]
    if target_channel(name) is None:
        return target
    tube = torch.zeros_like(target[:, :1])
    tube[..., ::2] = 1
    return torch.cat((target, tube), dim=1)


def value(kind: str, name: str, *, batch_dice: bool = False, weights: Sequence[float] | None = None) -> float:
    loss = build_loss(LABELS[kind], batch_dice=batch_dice, reference=name, class_weights=weights)
    return float(loss(tensors("logits")[0], target_of(kind, name)))


@pytest.mark.parametrize("key", [key for key in VALUES if not key.endswith("/bce") and key not in DEVIATING])
def test_loss_equals_the_reference_s(key: str) -> None:
    kind, dice, name = key.split("/")
    logits, target = tensors("logits"), tensors(kind.removesuffix("_deep"))
    is_deep = kind.endswith("_deep")
    loss = build_loss(
        LABELS[kind.removesuffix("_deep")],
        batch_dice=dice == "batch",
        reference=name,
        num_outputs=len(logits) if is_deep else None,
    )
    found = loss(logits, target) if is_deep else loss(logits[0], target[0])
    assert float(found) == pytest.approx(VALUES[key], abs=1e-5)


@pytest.mark.parametrize("dice", ["batch", "sample"])
def test_with_an_ignore_label_bce_is_the_reference_s_divided_by_the_number_of_regions(dice: str) -> None:
    oracle = {name: VALUES[f"regions_ignore/{dice}/{name}"] for name in ("bce", "dice", "dice_bce")}
    assert oracle["dice_bce"] == pytest.approx(oracle["bce"] + oracle["dice"], abs=1e-5)
    expected = oracle["bce"] / REGIONS.num_heads + oracle["dice"]
    assert value("regions_ignore", "dice_bce", batch_dice=dice == "batch") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), EVERY_LOSS)
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 3.0)], ids=["alike", "weighted"])
def test_gradient_is_exactly_zero_at_ignored_voxels_of_every_loss(
    kind: str, name: str, weights: Sequence[float] | None
) -> None:
    logits, target = tensors("logits")[0].requires_grad_(), tensors(kind)[0]
    labels = LABELS[kind]
    loss = build_loss(labels, batch_dice=True, reference=name, class_weights=weights)
    loss(logits, target_of(kind, name)).backward()
    assert logits.grad is not None
    ignored = torch.zeros_like(target[:, :1], dtype=torch.bool)
    if labels.ignore_label is not None:
        ignored = target[:, -1:].bool() if labels.has_regions else target == labels.ignore_label
    assert torch.count_nonzero(logits.grad[ignored.expand_as(logits)]) == 0
    assert torch.isfinite(logits.grad).all()
    share = torch.count_nonzero(logits.grad) / (~ignored).expand_as(logits).sum()
    assert share > (0.05 if name == "topk10" else 0.95)


@pytest.mark.parametrize(("kind", "name"), EVERY_LOSS)
@pytest.mark.parametrize("batch_dice", [True, False])
def test_equal_class_weights_are_the_same_as_none(kind: str, name: str, batch_dice: bool) -> None:
    plain = value(kind, name, batch_dice=batch_dice)
    assert value(kind, name, batch_dice=batch_dice, weights=(3,) * 4) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("kind", ["labels", "ignore"])
def test_weighted_ce_is_torch_s(kind: str) -> None:
    weights = (0.2, 1.0, 3.0, 0.5)
    expected = torch.nn.functional.cross_entropy(
        tensors("logits")[0], tensors(kind)[0][:, 0].long(), weight=torch.tensor(weights), ignore_index=4
    )
    assert value(kind, "ce", weights=weights) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"), [("labels", "dice"), ("regions", "dice_bce"), ("regions_ignore", "dice_bce")]
)
def test_a_weight_on_one_class_leaves_the_loss_of_that_class(kind: str, name: str) -> None:
    logits, target = tensors("logits")[0].requires_grad_(), tensors(kind)[0]
    weights = (0.0, 0.0, 5.0, 0.0)
    loss = build_loss(LABELS[kind], batch_dice=True, reference=name, class_weights=weights)(logits, target)
    changed = target.clone()
    if kind == "labels":
        changed[target == 1] = 3
    else:
        changed[:, [0, 1, 3]] = ~target[:, [0, 1, 3]]
    again = build_loss(LABELS[kind], batch_dice=True, reference=name, class_weights=weights)(logits, changed)
    assert float(again.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_weighted_top_k_ranks_weighted_values() -> None:
    weights = torch.tensor([1.0, 4.0, 0.5, 2.5])
    logits, target = tensors("logits")[0], tensors("labels")[0][:, 0].long()
    entropy = torch.nn.functional.cross_entropy(logits, target, reduction="none").flatten()
    share = weights[target].flatten()
    order = (entropy * share).argsort(descending=True)[: entropy.numel() // 10]
    expected = float((entropy * share)[order].sum() / share[order].sum())
    assert value("labels", "topk10", weights=weights.tolist()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_every_loss_of_a_batch_without_annotation_is_finite(name: str) -> None:
    logits = tensors("logits")[0].requires_grad_()
    loss = build_loss(IGNORE, batch_dice=True, reference=name, class_weights=(1, 2, 3, 4))
    found = loss(logits, torch.full_like(target_of("ignore", name), 4))
    found.backward()
    of_overlap = {"tversky": -1.0, "skeleton_recall": -2.0}
    assert float(found.detach()) == pytest.approx(of_overlap.get(name, -1.0 if "dice" in name else 0.0))
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_top_k_of_fewer_voxels_than_ten_takes_the_worst() -> None:
    logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 0.0]]]])
    two = Labels.from_dataset_json({"labels": {"background": 0, "a": 1}})
    found = build_loss(two, batch_dice=True, reference="topk10")(logits, torch.tensor([[[[0, 1]]]]))
    assert float(found) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("labels", "name", "weights", "words"),
    [
        (REGIONS, "ce", None, "loss 'ce' does not support regions; choose from dice_bce, dice"),
        (REGIONS, "topk10", None, "choose from dice_bce, dice"),
        (PLAIN, "dice_bce", None, "choose from dice_ce, dice, ce, topk10, dice_topk10"),
        (PLAIN, "ce", (1, 2, 3), "class_weights has 3 entries, expected 4, in the order background, a, b, c"),
        (REGIONS, "dice", (1, 2, 3), "expected 4, in the order all, ab, a, c"),
        (PLAIN, "dice_ce", (1, 0, 0, 0), "all foreground labels .* weigh 0"),
        (PLAIN, f"{__name__}:tensors", (1, 1, 1, 1), "class_weights are for the built-in losses"),
    ],
)
def test_loss_or_weights_that_do_not_suit_are_refused_with_the_remedy(
    labels: Labels, name: str, weights: Sequence[float] | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss(labels, batch_dice=True, reference=name, class_weights=weights)


@pytest.mark.parametrize("weights", [[-1, 2], [float("nan"), 1], [float("inf"), 1], [0, 0], []])
def test_what_cannot_be_weights_is_refused_when_the_settings_are_made(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"class_weights: .*expected finite values >= 0"):
        TrainConfig.from_mapping({"class_weights": weights})


def test_a_loss_that_a_user_registered_serves_labels_and_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, "_values", dict(LOSSES._values))
    LOSSES.register("mine", lambda *, batch_dice, reduce: lambda output, target, *, labels: output.sum() * 0 + 7)
    for labels in (PLAIN, REGIONS):
        assert float(build_loss(labels, batch_dice=True, reference="mine")(torch.zeros(1), torch.zeros(1))) == 7
