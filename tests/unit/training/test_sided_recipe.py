"""Labels of left and right: mirroring between the sides swaps them, or is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segwright.augmentation.transform import Samples
from segwright.core.errors import PlanError
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs
from segwright.data.plan import Configuration
from segwright.training.config import TrainConfig
from segwright.training.loading.loaders import training_recipe

LABELS = Labels({"background": 0, "hip_left": 1, "spine": 2, "hip_right": 3, "ignore": 4})
PAIRS = (("hip_left", "hip_right"),)


def recipe(sides: LabelPairs | None, dims: int = 3, labels: Labels = LABELS, **settings: Any) -> Any:
    configuration = Configuration.model_construct(
        patch_size=(8,) * dims, use_mask_for_norm=(False,), spacing=(1.0,) * dims
    )
    return training_recipe(TrainConfig(**settings), configuration, labels, sides)


def mirrored(found: Any, labels: torch.Tensor, *axes: int) -> torch.Tensor:
    transform = next(step.transform for step in found.steps if step.name == "mirror")
    flips = np.isin(np.arange(labels.ndim - 1), axes)
    samples = Samples(images=torch.rand(2, *labels.shape), labels=labels.expand(2, *labels.shape).clone())
    out = transform.apply(samples, [{"flips": flips}, {"flips": np.zeros_like(flips)}])
    assert torch.equal(out.images[0], samples.images[0].flip([axis + 1 for axis in axes]))
    assert torch.equal(out.labels[1], labels)
    alone = Samples(images=samples.images[:1], labels=samples.labels[:1])
    assert torch.equal(transform.apply(alone, [{"flips": flips}]).labels, out.labels[:1])
    return out.labels[0]


@pytest.mark.parametrize("augmentation", ["default", "strong"])
def test_a_flip_between_the_sides_swaps_their_labels(augmentation: str) -> None:
    found = recipe(LabelPairs(pairs=PAIRS, axes=(2,), swap=True), augmentation=augmentation)
    assert found.mirror_axes == (0, 1, 2)
    assert found.swaps_sides
    labels = torch.randint(-1, 5, (2, 8, 8, 8), dtype=torch.int16)
    names = torch.tensor([0, 3, 2, 1, 4, -1], dtype=torch.int16)
    assert torch.equal(mirrored(found, labels, 2), names[labels.flip(3).long()])
    assert torch.equal(mirrored(found, labels, 0, 2), names[labels.flip(1, 3).long()])
    assert torch.equal(mirrored(found, labels, 0, 1), labels.flip(1, 2))


def test_the_left_right_axis_is_not_mirrored_unless_requested() -> None:
    sides = LabelPairs(pairs=PAIRS, axes=(0, 2), swap=False)
    assert recipe(sides).mirror_axes == (1,)
    assert recipe(sides, dims=2).mirror_axes == (0,)
    assert recipe(sides, mirror_axes=(0, 1, 2)).mirror_axes == (0, 1, 2)
    assert not recipe(sides).swaps_sides
    assert "mirror" not in recipe(LabelPairs(pairs=PAIRS, axes=(0, 1, 2), swap=False)).names()


def test_requested_axes_swap_labels_too() -> None:
    sides = LabelPairs(pairs=PAIRS, axes=(2,), swap=True)
    assert recipe(sides, mirror_axes=(1, 2)).swaps_sides
    assert not recipe(sides, mirror_axes=(1,)).swaps_sides
    assert recipe(sides, mirror_axes=()).mirror_axes == ()


def test_slices_without_the_left_right_axis_mirror_as_usual() -> None:
    assert recipe(LabelPairs(pairs=PAIRS, axes=(0,), swap=True), dims=2) == recipe(None, dims=2)


def test_pairs_that_do_not_fit_the_labels_are_refused() -> None:
    regions = Labels({"background": 0, "hip_left": (1, 2), "hip_right": (3,)}, (1, 2))
    with pytest.raises(PlanError, match="the same number of labels"):
        recipe(LabelPairs(pairs=PAIRS, axes=(2,), swap=True), labels=regions)
