"""Affine resampling against scipy, reading boxes that hold all that is needed, mirroring and masking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segwright.augmentation.resampling import Source, patch_centre, resample, source_box
from segwright.augmentation.spatial import Affine, MaskOutside, Mirror, rotation_matrix
from segwright.augmentation.transform import Samples


def make_case(shape: Sequence[int], num_labels: int = 4, seed: int = 0) -> tuple[Any, Any]:
    """Return a smooth image (1, *S) and a label map (1, *S) of thick structures."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=shape), 1.5).astype(np.float32) * 10
    scores = [ndimage.gaussian_filter(rng.normal(size=shape), 2.0) for _ in range(num_labels)]
    return image[None], np.argmax(scores, axis=0).astype(np.int16)[None] - 1


def make_source(image: Any, label: Any, centre: Sequence[float], matrix: Any, margin: int = 30) -> Source:
    """Return the whole case with a wide frame of padding."""
    widths = [(0, 0)] + [(margin, margin)] * (image.ndim - 1)
    return Source(
        images=torch.from_numpy(np.pad(image, widths)),
        labels=torch.from_numpy(np.pad(label, widths, constant_values=-1)),
        centre=tuple(position + margin for position in centre),
        matrix=matrix,
    )


def scipy_patch(image: Any, label: Any, centre: Sequence[float], matrix: Any, patch_size: Sequence[int]) -> Any:
    """Return image and label of the patch by map_coordinates and an argmax over interpolated one-hot maps."""
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2 for size in patch_size], indexing="ij"))
    where = np.tensordot(matrix, grid, axes=1) + np.reshape(centre, (-1, *(1,) * len(patch_size)))
    shown = ndimage.map_coordinates(image[0].astype(np.float64), where, order=1, mode="grid-constant")
    values = sorted({-1, *np.unique(label)})
    one_hot = [
        ndimage.map_coordinates(
            (label[0] == value).astype(np.float64), where, order=1, mode="grid-constant", cval=float(value == -1)
        )
        for value in values
    ]
    return shown, np.array(values)[np.argmax(one_hot, axis=0)]


def in_plane(angle: float, scale: float = 1.0) -> Any:
    """Return a turn about the first axis that leaves that axis alone."""
    matrix = np.eye(3)
    matrix[1:, 1:] = rotation_matrix(np.array([angle])) * scale
    return matrix


CASES = [
    ((14, 20, 17), (10, 12, 9), rotation_matrix(np.array([0.4, -0.2, 0.3])) * 1.3),
    ((14, 20, 17), (10, 12, 9), np.eye(3) * 0.7),
    ((8, 9, 30), (12, 12, 8), rotation_matrix(np.array([-0.5, 0.5, 0.1]))),
    ((24, 19), (16, 12), rotation_matrix(np.array([2.0])) * 1.4),
    ((24, 19), (16, 12), np.diag([1.3, 1.3])),
    ((7, 24, 19), (6, 16, 12), in_plane(2.0, 0.8)),
    ((7, 24, 19), (6, 16, 12), in_plane(0.0, 1.3)),
]


@pytest.mark.parametrize(("shape", "patch_size", "matrix"), CASES)
def test_resampled_patch_equals_scipy(shape: tuple[int, ...], patch_size: tuple[int, ...], matrix: Any) -> None:
    image, label = make_case(shape)
    centre = patch_centre([1] * len(shape), patch_size)
    result = resample(make_source(image, label, centre, matrix), patch_size)
    expected_image, expected_label = scipy_patch(image, label, centre, matrix, patch_size)
    np.testing.assert_allclose(result.images[0, 0].numpy(), expected_image, atol=1e-4)
    assert np.mean(result.labels[0, 0].numpy() == expected_label) >= 0.999


def test_resampled_patch_equals_grid_sample_with_the_reference_convention() -> None:
    image, label = make_case((17, 17, 17))
    size = (9, 11, 7)
    matrix = rotation_matrix(np.array([0.3, 0.1, -0.4])) * 0.9
    result = resample(make_source(image, label, (8.0, 8.0, 8.0), matrix), size)
    grid = np.stack(np.meshgrid(*[np.arange(s) - (s - 1) / 2 for s in size], indexing="ij"), axis=-1)
    normalised = (grid @ matrix.T / (17 / 2))[..., ::-1].astype(np.float32)
    expected = functional.grid_sample(
        torch.from_numpy(image)[None], torch.from_numpy(normalised.copy())[None], align_corners=False
    )
    torch.testing.assert_close(result.images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("matrix", [np.eye(3) * 1.2, CASES[0][2], in_plane(0.7)])
def test_a_box_in_the_whole_of_a_case_gives_the_bits_of_the_box_alone(matrix: Any) -> None:
    image, label = make_case((40, 37, 43))
    middle, size = (19.5, 18.0, 20.5), (10, 9, 8)
    box = source_box(matrix, middle, size)
    centre = tuple(position - low for position, (low, _) in zip(middle, box, strict=True))
    inner = (slice(None), *(slice(*interval) for interval in box))
    images, labels = torch.from_numpy(image), torch.from_numpy(label)
    whole = resample(Source(images=images, labels=labels, centre=centre, matrix=matrix, box=box), size)
    parts = images[inner].contiguous(), labels[inner].contiguous()
    alone = resample(Source(images=parts[0], labels=parts[1], centre=centre, matrix=matrix), size)
    assert torch.equal(whole.images, alone.images)
    assert torch.equal(whole.labels, alone.labels)


def test_patch_of_several_slabs_equals_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segwright.augmentation.resampling.SLAB_VOXELS", 300)
    shape, patch_size, matrix = CASES[0]
    image, label = make_case(shape)
    centre = patch_centre([1] * 3, patch_size)
    result = resample(make_source(image, label, centre, matrix), patch_size)
    expected_image, expected_label = scipy_patch(image, label, centre, matrix, patch_size)
    np.testing.assert_allclose(result.images[0, 0].numpy(), expected_image, atol=1e-4)
    assert np.mean(result.labels[0, 0].numpy() == expected_label) >= 0.999


def test_largest_weight_wins_among_many_labels() -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 100, size=(1, 10, 11, 12)).astype(np.int16)
    image = np.zeros_like(label, dtype=np.float32)
    matrix = rotation_matrix(np.array([0.3, 0.2, 0.1]))
    result = resample(make_source(image, label, (5.0, 5.0, 6.0), matrix), (6, 6, 6))
    _, expected = scipy_patch(image, label, (5.0, 5.0, 6.0), matrix, (6, 6, 6))
    assert np.mean(result.labels[0, 0].numpy() == expected) >= 0.999


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dims=st.sampled_from([2, 3]))
def test_source_box_holds_every_voxel_the_patch_needs(data: st.DataObject, dims: int) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 14)] * dims))
    patch_size = data.draw(st.tuples(*[st.integers(1, 10)] * dims))
    start = data.draw(st.tuples(*[st.integers(-4, 8)] * dims))
    angles = np.array(data.draw(st.tuples(*[st.floats(-math.pi, math.pi)] * (3 if dims == 3 else 1))))
    matrix = rotation_matrix(angles) * data.draw(st.floats(0.7, 1.4))
    image, label = make_case(shape)
    centre = patch_centre(start, patch_size)
    margin = 60
    whole = make_source(image, label, centre, matrix, margin=margin)
    box = source_box(matrix, centre, patch_size)
    inner = (slice(None), *(slice(low + margin, high + margin) for low, high in box))
    cut = Source(
        images=whole.images[inner].contiguous(),
        labels=whole.labels[inner].contiguous(),
        centre=tuple(middle - low for middle, (low, _) in zip(centre, box, strict=True)),
        matrix=matrix,
    )
    wide, narrow = resample(whole, patch_size), resample(cut, patch_size)
    torch.testing.assert_close(narrow.images, wide.images, atol=1e-3, rtol=0)
    assert (narrow.labels == wide.labels).float().mean() > 0.97


def test_rotation_of_a_quarter_turn_moves_axis_one_to_minus_axis_two() -> None:
    about_first = rotation_matrix(np.array([math.pi / 2, 0, 0]))
    np.testing.assert_allclose(about_first @ [0, 0, 1], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_matrix(np.array([math.pi / 2])) @ [1, 0], [0, 1], atol=1e-12)


def test_in_plane_affine_leaves_the_first_axis_alone() -> None:
    affine = Affine(rotation=(-3.0, 3.0), rotation_probability=1.0, scaling_probability=1.0, in_plane=True)
    matrix = affine.draw(np.random.default_rng(0), 3)
    assert matrix is not None
    np.testing.assert_array_equal(matrix[0], [1, 0, 0])
    np.testing.assert_array_equal(matrix[:, 0], [1, 0, 0])
    assert abs(matrix[1, 2]) > 0.01


def test_mirror_flips_image_and_label_together() -> None:
    images = torch.arange(48.0).view(2, 1, 4, 6)
    samples = Samples(images=images, labels=images.to(torch.int16))
    result = Mirror(axes=(0, 1)).apply(samples, [{"flips": np.array([True, False])}, {"flips": np.array([True, True])}])
    assert torch.equal(result.images[0], images[0].flip(1))
    assert torch.equal(result.images[1], images[1].flip((1, 2)))
    assert torch.equal(result.labels, result.images.to(torch.int16))


def test_mirror_draws_only_allowed_axes() -> None:
    rng = np.random.default_rng(0)
    draws = [Mirror(axes=(0, 2)).draw(rng, (1, 8, 8, 8)) for _ in range(200)]
    assert not any(draw["flips"][1] for draw in draws if draw is not None)


def test_masked_channels_are_zero_outside_the_mask_only() -> None:
    images = torch.ones(1, 2, 3, 3)
    labels = torch.zeros(1, 1, 3, 3, dtype=torch.int16)
    labels[0, 0, 0] = -1
    samples = Samples(images=images, labels=labels)
    result = MaskOutside(channels=(1,)).apply(samples, [{}])
    assert result.images[0, 0].sum() == 9
    assert result.images[0, 1, 0].sum() == 0
    assert result.images[0, 1, 1:].sum() == 6
