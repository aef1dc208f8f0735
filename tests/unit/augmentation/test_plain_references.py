"""What the other tests of this folder leave out: transforms with fixed parameters against plain per-sample programs.

Images to 1e-4, label maps exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_previous_stage import blobs

from segwright.augmentation.cascade import (
    OPERATORS,
    BinaryOperators,
    ComponentRemoval,
    PreviousStage,
    apply_operator,
)
from segwright.augmentation.intensity import GaussianNoise
from segwright.augmentation.recipe import default_recipe
from segwright.augmentation.resampling import Source, resample
from segwright.augmentation.spatial import MaskOutside, Mirror, rotation_matrix
from segwright.augmentation.transform import Samples
from segwright.core.seeds import generator
from segwright.data.labels import Labels
from segwright.training.loading.targets import encode_targets

SHAPES = [(3, 2, 9, 12, 7), (3, 2, 16, 11)]
REGIONS = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
)


def make_samples(shape: tuple[int, ...]) -> Samples:
    rng = np.random.default_rng(0)
    images = rng.normal(1.0, 2.0, shape).astype(np.float32)
    labels = rng.integers(-1, 4, (shape[0], 1, *shape[2:])).astype(np.int16)
    return Samples(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_adds_sigma_times_the_field_of_its_seed(shape: tuple[int, ...]) -> None:
    samples = make_samples(shape)
    draws = [{"sigma": np.asarray(0.02 * (n + 1)), "seed": np.asarray(100 + n)} for n in range(3)]
    result = GaussianNoise().apply(samples, draws)
    for index, draw in enumerate(draws):
        field = torch.randn(shape[1:], generator=torch.Generator().manual_seed(int(draw["seed"])))
        expected = samples.images[index].numpy() + float(draw["sigma"]) * field.numpy()
        np.testing.assert_allclose(result.images[index].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3])
def test_mirroring_reverses_the_drawn_axes(shape: tuple[int, ...], count: int) -> None:
    samples = make_samples((count, *shape[1:]))
    dims = len(shape) - 2
    flips = np.random.default_rng(2).random((count, dims)) < 0.5
    flips[:, 0] = True
    result = Mirror(axes=tuple(range(dims))).apply(samples, [{"flips": each} for each in flips])
    for index in range(count):
        axes = tuple(1 + int(axis) for axis in np.flatnonzero(flips[index]))
        np.testing.assert_array_equal(result.images[index].numpy(), np.flip(samples.images[index].numpy(), axes))
        np.testing.assert_array_equal(result.labels[index].numpy(), np.flip(samples.labels[index].numpy(), axes))


@pytest.mark.parametrize("shape", SHAPES)
def test_masking_zeroes_its_channels_where_the_label_is_below_zero(shape: tuple[int, ...]) -> None:
    samples = make_samples(shape)
    result = MaskOutside(channels=(1,)).apply(samples, [{}] * 3)
    for index in range(3):
        expected = samples.images[index].numpy().copy()
        expected[1][samples.labels[index, 0].numpy() < 0] = 0
        np.testing.assert_array_equal(result.images[index].numpy(), expected)


@pytest.mark.parametrize("in_plane", [False, True])
def test_many_channels_and_maps_are_turned_alike(in_plane: bool) -> None:
    rng = np.random.default_rng(5)
    images = ndimage.gaussian_filter(rng.normal(size=(3, 15, 24, 22)), (0, 1, 1, 1)).astype(np.float32)
    labels = np.stack([blobs(seed, (15, 24, 22)) for seed in (1, 2)]).astype(np.int16)
    if in_plane:
        matrix = np.eye(3)
        matrix[1:, 1:] = rotation_matrix(np.array([0.7])) * 1.2
    else:
        matrix = rotation_matrix(np.array([0.3, -0.4, 0.5])) * 0.8
    size, centre = (6, 9, 8), (7.5, 12.0, 10.5)
    source = Source(images=torch.from_numpy(images), labels=torch.from_numpy(labels), centre=centre, matrix=matrix)
    result = resample(source, size)
    grid = np.stack(np.meshgrid(*[np.arange(extent) - (extent - 1) / 2 for extent in size], indexing="ij"))
    where = np.tensordot(matrix, grid, axes=1) + np.reshape(centre, (3, 1, 1, 1))
    for channel in range(3):
        expected = ndimage.map_coordinates(images[channel].astype(np.float64), where, order=1)
        np.testing.assert_allclose(result.images[0, channel].numpy(), expected, atol=1e-4)
    for index in range(2):
        share = ndimage.map_coordinates(labels[index].astype(np.float64), where, order=1)
        assert np.mean(result.labels[0, index].numpy() == (share > 0.5)) >= 0.999


@pytest.mark.parametrize("shape", [(18, 20, 16), (26, 30)])
def test_operators_change_one_channel_after_the_other(shape: tuple[int, ...]) -> None:
    masks = np.stack([blobs(seed, shape) for seed in (1, 2, 3)])
    masks[1] &= ~masks[0]
    masks[2] &= ~masks[0] & ~masks[1]
    for index in range(6):
        draw = BinaryOperators(probability=1.0, radius=(1.0, 3.0)).draw(generator(1, "law", index), 3)
        assert draw is not None
        expected = masks.copy()
        for label in draw["order"]:
            if not draw["chosen"][label]:
                continue
            operator, radius = OPERATORS[int(draw["operator"][label])], float(draw["radius"][label])
            new = apply_operator(expected[label], operator, radius)  # itself compared with scipy elsewhere
            for other in range(3):
                if other != label:
                    expected[other][new & ~expected[label]] = False
            expected[label] = new
        np.testing.assert_array_equal(BinaryOperators().apply(masks, draw), expected)


@pytest.mark.parametrize("shape", [(18, 20, 16), (40, 44)])
def test_one_small_component_is_erased_as_a_walk_over_voxels_finds_them(shape: tuple[int, ...]) -> None:
    masks = np.stack([blobs(seed, shape) for seed in (4, 5)])
    for index in range(6):
        draw = {"chosen": np.array([True, False]), "pick": np.array([index / 6, 0.5])}
        small = [part for part in components(masks[0]) if len(part) < 0.15 * masks[0].size]
        expected = masks.copy()
        for voxel in small[int(index / 6 * len(small))]:
            expected[0][voxel] = False
        np.testing.assert_array_equal(ComponentRemoval().apply(masks, draw), expected)


def components(mask: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Return the fully connected components in the order of their first voxels."""
    left = {tuple(int(part) for part in place) for place in np.argwhere(mask)}
    offsets = [np.subtract(each, 1) for each in np.ndindex((3,) * mask.ndim)]
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        part, waiting = [start], [start]
        while waiting:
            place = waiting.pop()
            for offset in offsets:
                near = tuple(int(value) for value in np.add(place, offset))
                if near in left:
                    left.discard(near)
                    part.append(near)
                    waiting.append(near)
        found.append(part)
    return found


def test_the_previous_stage_becomes_channels_after_its_transforms() -> None:
    labels = torch.from_numpy(np.random.default_rng(1).integers(-1, 3, (2, 2, 10, 11, 9)).astype(np.int16))
    stage = PreviousStage(
        labels=(1, 2), operators=BinaryOperators(probability=1.0), removal=ComponentRemoval(probability=1.0)
    )
    draws = [stage.draw(lambda name, index=index: generator(2, name, index)) for index in range(2)]  # type: ignore[misc]
    images = torch.randn(2, 1, 10, 11, 9)
    result = stage.append(Samples(images=images, labels=labels), draws)
    for index, draw in enumerate(draws):
        masks = np.stack([labels[index, 1].numpy() == value for value in (1, 2)])
        if "cascade_operator" in draw:
            masks = BinaryOperators().apply(masks, draw["cascade_operator"])
        if "cascade_removal" in draw:
            masks = ComponentRemoval().apply(masks, draw["cascade_removal"])
        np.testing.assert_array_equal(result[index, 1:].numpy(), masks.astype(np.float32))
        assert torch.equal(result[index, :1], images[index])


def test_the_whole_recipe_on_a_batch_is_each_transform_on_each_sample_in_turn() -> None:
    recipe = default_recipe((8, 9, 10), masked_channels=(0,))
    samples = make_samples((12, 2, 8, 9, 10))
    draws: list[Any] = [
        recipe.draw(lambda name, index=index: generator(9, name, index), (2, 8, 9, 10))  # type: ignore[misc]
        for index in range(12)
    ]
    alone = [
        Samples(images=i[None].clone(), labels=m[None].clone())
        for i, m in zip(samples.images, samples.labels, strict=True)
    ]
    for step in recipe.steps:
        alone = [
            step.transform.apply(each, [draw[step.name]]) if step.name in draw else each
            for each, draw in zip(alone, draws, strict=True)
        ]
    together = recipe.apply(samples, draws)
    torch.testing.assert_close(together.images, torch.cat([each.images for each in alone]), atol=1e-4, rtol=0)
    assert torch.equal(together.labels, torch.cat([each.labels for each in alone]))


def test_regions_at_every_resolution_are_read_off_the_label_map() -> None:
    maps = torch.from_numpy(np.random.default_rng(3).integers(-1, 4, (2, 1, 9, 14, 10)).astype(np.int16))
    scales = [[1.0, 1.0, 1.0], [1.0, 0.5, 0.5], [0.5, 0.25, 0.25]]
    targets = encode_targets(maps, REGIONS, scales)
    assert isinstance(targets, list)
    for target, scale in zip(targets, scales, strict=True):
        sizes = [round(size * factor) for size, factor in zip(maps.shape[2:], scale, strict=True)]
        places = [  # the old voxel that the middle of a new one lies in
            np.floor((np.arange(new) + 0.5) * old / new).astype(int)
            for old, new in zip(maps.shape[2:], sizes, strict=True)
        ]
        small = maps[:, 0].numpy()[:, places[0]][:, :, places[1]][:, :, :, places[2]]
        expected = np.stack([np.isin(small, values) for values in ([1, 2], [2], [3])], axis=1)
        np.testing.assert_array_equal(target.numpy(), expected)
