"""The transforms of the strong recipe with given parameters, against plain formulas; and the recipe on patches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from segwright.augmentation.local import (
    AdditiveBrightness,
    BlankRectangle,
    BrightnessGradient,
    GaussianField,
    LocalGamma,
    Rot90Transpose,
    Sharpen,
)
from segwright.augmentation.recipe import build_recipe
from segwright.augmentation.spatial import Affine
from segwright.augmentation.transform import Samples, Transform
from segwright.core.seeds import generator
from segwright.data.labels import Labels
from segwright.training.cascade import build_previous_stage

SHAPES = [(2, 2, 9, 12, 7), (2, 2, 16, 11)]


def make_samples(shape: tuple[int, ...], seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(1.0, 2.0, shape).astype(np.float32))
    labels = torch.from_numpy(rng.integers(-1, 3, (shape[0], 1, *shape[2:])).astype(np.int16))
    return Samples(images=images, labels=labels)


def drawn(transform: Transform, shape: tuple[int, ...]) -> list[Any]:
    """Return one draw for each sample."""
    rng = np.random.default_rng(3)
    found: list[Any] = []
    while len(found) < shape[0]:
        draw = transform.draw(rng, shape[1:])
        found += [] if draw is None else [draw]
    return found


def gaussian_field(draw: Any, channel: int, size: tuple[int, ...]) -> Any:
    grid = np.meshgrid(*(np.arange(extent) for extent in size), indexing="ij")
    power = sum(
        -0.5 * ((axis - draw["centre"][channel, index]) / draw["sigma"][channel, index]) ** 2
        for index, axis in enumerate(grid)
    )
    return np.exp(power - np.max(power))


def gradient(image: Any, draw: Any, channel: int) -> Any:
    return image + draw["height"][channel] * gaussian_field(draw, channel, image.shape)


def local_gamma(image: Any, draw: Any, channel: int) -> Any:
    low, spread = image.min(), np.ptp(image)
    scaled = (image - low) / spread
    weight = gaussian_field(draw, channel, image.shape)
    return ((1 - weight) * scaled + weight * scaled ** draw["gamma"][channel]) * spread + low


def sharpen(image: Any, draw: Any, channel: int) -> Any:
    return image - draw["strength"][channel] * ndimage.laplace(image.astype(np.float64), mode="nearest")


def shift(image: Any, draw: Any, channel: int) -> Any:
    return image + draw["shift"][channel]


def blank(image: Any, draw: Any, channel: int) -> Any:
    image = image.copy()
    for box in draw["boxes"][channel]:
        inside = tuple(slice(*edge) for edge in box)
        if image[inside].size:
            image[inside] = image[inside].mean()
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("transform", "reference"),
    [
        (BrightnessGradient(), gradient),
        (LocalGamma(), local_gamma),
        (Sharpen(), sharpen),
        (AdditiveBrightness(), shift),
        (BlankRectangle(), blank),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) else "",
)
def test_each_equals_its_formula(transform: Any, reference: Any, shape: tuple[int, ...]) -> None:
    samples, draws = make_samples(shape), drawn(transform, shape)
    before = samples.images.clone()
    result = transform.apply(samples, draws)
    for index, draw in enumerate(draws):
        for channel in range(shape[1]):
            expected = reference(before[index, channel].numpy(), draw, channel)
            np.testing.assert_allclose(result.images[index, channel].numpy(), expected, atol=1e-4)
    assert torch.equal(samples.images, before)
    assert result.labels is samples.labels


@pytest.mark.parametrize("axes", [(1, 2), (0, 1, 2)])
def test_turns_move_image_and_label_alike_and_lose_nothing(axes: tuple[int, ...]) -> None:
    shape = (40, 1, *(6 if axis in axes else 4 for axis in range(3)))
    values = torch.arange(float(np.prod(shape[2:]))).reshape(shape[2:]).expand(shape)
    samples = Samples(images=values.clone(), labels=values.to(torch.int16))
    transform = Rot90Transpose(axes=axes)
    draws = drawn(transform, shape)
    result = transform.apply(samples, draws)
    assert torch.equal(result.images, result.labels.float())
    assert torch.equal(result.images.flatten(1).sort().values, values.flatten(1).sort().values)
    still = [axis for axis in range(3) if axis not in axes]
    assert all(not draw["flips"][axis] and draw["order"][axis] == axis for draw in draws for axis in still)
    assert len({(*draw["order"], *draw["flips"]) for draw in draws}) > 5


def test_a_bump_far_outside_still_has_a_largest_value() -> None:
    draw = {"centre": np.array([[-400.0, 3.0]]), "sigma": np.array([[2.0, 1.0]])}
    field = GaussianField().values([draw], torch.zeros(1, 1, 8, 8))
    assert float(field.amax()) == 1.0
    assert bool(torch.isfinite(field).all())


def test_boxes_stay_inside() -> None:
    rng = np.random.default_rng(0)
    transform = BlankRectangle(probability=1.0)
    for _ in range(200):
        draw = transform.draw(rng, (2, 5, 30, 9))
        if draw is not None:
            assert (draw["boxes"] >= 0).all()
            assert (draw["boxes"][..., 1] <= np.array([5, 30, 9])).all()


def test_scaling_per_axis_and_kept_angles() -> None:
    affine = Affine(rotation=(-1.0, 1.0), rotation_probability=0.0, scaling_probability=1.0, scaling_per_axis=True)
    matrix = affine.draw(np.random.default_rng(0), 3)
    assert matrix is not None
    assert len({*np.diag(matrix)}) == 3
    never = Affine(rotation=(-1.0, 1.0), rotation_probability=1.0, scaling_probability=0.0, axis_probability=0.0)
    found = never.draw(np.random.default_rng(0), 3)
    assert found is not None
    np.testing.assert_allclose(found, np.eye(3))


@pytest.mark.parametrize("patch_size", [(16, 16, 16), (8, 32, 32), (12, 20), (16, 16)])
def test_the_recipe_gives_finite_patches_of_the_same_shape(patch_size: tuple[int, ...]) -> None:
    recipe = build_recipe("strong", patch_size, masked_channels=[0])
    shape = (24, 2, *patch_size)
    samples = make_samples(shape)
    draws = [
        recipe.draw(lambda name, index=index: generator(1, name, index), shape[1:])  # type: ignore[misc]
        for index in range(24)
    ]
    assert {name for draw in draws for name in draw} >= {"blur", "gamma", "mirror", "blank", "gradient", "sharpen"}
    before = samples.images.clone()
    samples = recipe.apply(samples, draws)
    assert samples.images.shape == shape
    assert bool(torch.isfinite(samples.images).all())
    assert not torch.equal(samples.images, before)
    assert ("turn" in recipe.names()) == (patch_size != (12, 20))


def test_axes_of_thick_slices_are_turned_too_where_they_are_the_commonest() -> None:
    for patch_size, axes in (((16, 16, 64), (0, 1)), ((8, 32, 32), (1, 2)), ((16, 16, 16), (0, 1, 2))):
        recipe = build_recipe("strong", patch_size)
        (turn,) = (each.transform for each in recipe.steps if each.name == "turn")
        assert isinstance(turn, Rot90Transpose)
        assert turn.axes == axes


def test_a_cascade_changes_every_label_that_is_drawn_in_the_strong_recipe_and_half_of_them_else() -> None:
    configuration = SimpleNamespace(previous_stage="3d_lowres")
    for name, per_label in (("strong", 1.0), ("default", 0.5)):
        stage = build_previous_stage(configuration, Labels({"background": 0, "a": 1}), build_recipe(name, (8, 8)))  # type: ignore[arg-type]
        assert stage is not None
        assert stage.operators is not None
        assert stage.removal is not None
        assert (stage.operators.per_label, stage.removal.per_label) == (per_label, per_label)
    plain = build_previous_stage(configuration, Labels({"background": 0, "a": 1}), build_recipe("none", (8, 8)))  # type: ignore[arg-type]
    assert plain is not None
    assert plain.operators is None
