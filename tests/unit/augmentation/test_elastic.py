"""Elastic deformation against scipy, and that it stays inside the patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import interpolate, ndimage
from test_spatial import make_case

from segwright.augmentation.elastic import Elastic, spline_operator
from segwright.augmentation.recipe import build_recipe
from segwright.augmentation.transform import Samples


def positions_of(transform: Elastic, draw: Any, size: tuple[int, ...]) -> list[np.ndarray]:
    """Evaluate the tensor-product spline with scipy's own basis functions."""
    spacing, strength = float(draw["spacing"]), float(draw["strength"])
    rng = np.random.default_rng(int(draw["seed"]))
    intervals = max(1, round(1 / spacing))
    knots = np.arange(-3, intervals + 4)
    grid = np.meshgrid(*[np.arange(extent, dtype=float) for extent in size], indexing="ij")
    found = []
    for axis, extent in enumerate(size):
        values = rng.normal(0.0, strength * spacing * extent, [intervals + 3] * len(size))
        for other, width in enumerate(size):
            where = (np.arange(width) + 0.5) / width * intervals
            values = interpolate.BSpline(knots, values, 3, axis=other)(where)
        moved = 0 if axis in transform.fixed_axes else values
        found.append(np.clip(grid[axis] + moved, 0, extent - 1))
    return found


@pytest.mark.parametrize(
    ("size", "fixed"), [((14, 12, 16), ()), ((5, 18, 16), (0,)), ((20, 17), ()), ((1, 12, 12), (0,))]
)
def test_deformed_patch_equals_scipy(size: tuple[int, ...], fixed: tuple[int, ...]) -> None:
    image, label = make_case(size)
    transform = Elastic(probability=1.0, strength=(0.1, 0.3), fixed_axes=fixed)
    draw = transform.draw(np.random.default_rng(4), (1, *size))
    samples = Samples(images=torch.from_numpy(image)[None], labels=torch.from_numpy(label)[None])
    result = transform.apply(samples, [draw])  # type: ignore[list-item]
    where = positions_of(transform, draw, size)
    expected = ndimage.map_coordinates(image[0].astype(np.float64), where, order=1, mode="nearest")
    np.testing.assert_allclose(result.images[0, 0].numpy(), expected, atol=1e-4)
    one_hot = [
        ndimage.map_coordinates((label[0] == value).astype(float), where, order=1, mode="nearest")
        for value in np.unique(label)
    ]
    assert np.mean(result.labels[0, 0].numpy() == np.unique(label)[np.argmax(one_hot, axis=0)]) >= 0.999
    assert not np.array_equal(result.labels[0, 0].numpy(), label[0])


def test_weights_of_the_splines_add_up_to_one() -> None:
    np.testing.assert_allclose(spline_operator(37, 0.23).sum(axis=1), 1.0, atol=1e-6)


def test_no_label_appears_that_the_patch_has_not() -> None:
    labels = torch.full((1, 1, 12, 12, 12), 3, dtype=torch.int16)
    transform = Elastic(probability=1.0, strength=(2.0, 2.0))
    draw = transform.draw(np.random.default_rng(0), (1, 12, 12, 12))
    result = transform.apply(Samples(images=labels.float(), labels=labels), [draw])  # type: ignore[list-item]
    assert torch.equal(result.labels, labels)
    assert torch.allclose(result.images, labels.float())


def test_it_is_off_by_default_and_a_recipe_of_its_own() -> None:
    assert "elastic" not in build_recipe("default", (8, 64, 64)).names()
    recipe = build_recipe("elastic", (8, 64, 64))
    assert recipe.names()[:2] == ("spatial", "elastic")
    assert next(step.transform for step in recipe.steps if step.name == "elastic") == Elastic(fixed_axes=(0,))


@pytest.mark.parametrize("fixed", [(), (0,)])
def test_a_patch_of_one_voxel_stays(fixed: tuple[int, ...]) -> None:
    samples = Samples(images=torch.ones(2, 1, 1, 1, 1), labels=torch.ones(2, 1, 1, 1, 1, dtype=torch.int16))
    draws = [Elastic(probability=1.0).draw(np.random.default_rng(seed), (1, 1, 1, 1)) for seed in range(2)]
    result = Elastic(fixed_axes=fixed).apply(samples, draws)  # type: ignore[arg-type]
    assert torch.equal(result.images, samples.images)
    assert torch.equal(result.labels, samples.labels)
