"""The previous stage's maps as channels, against definitions written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from segwright.augmentation.cascade import (
    OPERATORS,
    BinaryOperators,
    ComponentRemoval,
    PreviousStage,
    apply_operator,
    ball,
)
from segwright.augmentation.transform import Samples


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return np.asarray(field > np.quantile(field, 0.7))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("radius", [1.0, 1.7, 2.2, 2.5, 2.65, 3.1])  # elements of odd and of even width
@pytest.mark.parametrize("shape", [(20, 24, 22), (40, 33)])
def test_operators_are_those_of_morphology(operator: str, radius: float, shape: tuple[int, ...]) -> None:
    mask, element = blobs(1, shape), ball(radius, len(shape))

    def dilate(image: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.binary_dilation(image, np.flip(element)))  # a voxel looks around itself

    def erode(image: np.ndarray) -> np.ndarray:
        return ~dilate(~image)

    expected = {
        "dilation": lambda: dilate(mask),
        "erosion": lambda: erode(mask),
        "closing": lambda: erode(dilate(mask)),
        "opening": lambda: dilate(erode(mask)),
    }[operator]()
    np.testing.assert_array_equal(apply_operator(mask, operator, radius), expected)


@pytest.mark.parametrize("radius", [1.7, 2.0, 2.65, 3.253085737531595, 7.9])
def test_a_ball_is_cut_from_points_that_divide_its_diameter_evenly(radius: float) -> None:
    axes = np.ogrid[(slice(-radius, radius, 1j * int(2 * radius + 1)),) * 3]
    first, second, third = (axis**2 for axis in axes)
    np.testing.assert_array_equal(ball(radius, 3), third + second + first <= radius**2)


def test_a_disk_is_cut_from_whole_steps_and_off_its_centre_for_a_broken_radius() -> None:
    middle = [0, 1, 1, 1, 0]  # points at -1.7, -0.7, 0.3, 1.3 and 2.3
    assert ball(1.7, 2).astype(int).tolist() == [[0] * 5, middle, middle, [0, 1, 1, 0, 0], [0] * 5]
    assert ball(1.5, 2).astype(int).tolist() == [[0] * 4, [0, 1, 1, 0], [0, 1, 1, 0], [0] * 4]


def test_an_even_ball_dilates_too_and_an_empty_mask_stays_empty() -> None:
    mask = np.zeros((9, 9, 9), dtype=bool)
    assert not apply_operator(mask, "dilation", 2.5).any()
    mask[4, 4, 4] = True
    assert apply_operator(mask, "dilation", 2.5).sum() == ball(2.5, 3).sum()
    assert ball(2.5, 3).shape == (6, 6, 6)


def test_a_gained_voxel_is_taken_from_the_other_channels_and_a_lost_one_is_in_none() -> None:
    masks = np.zeros((2, 12, 12), dtype=bool)
    masks[0, 2:6, 2:6], masks[1, 2:6, 6:10] = True, True
    draw = {
        "order": np.array([0, 1]),
        "chosen": np.array([True, False]),
        "operator": np.array([OPERATORS.index("dilation"), 0]),
        "radius": np.array([1.0, 1.0]),
    }
    grown = BinaryOperators().apply(masks, draw)
    assert grown[0, 3, 6]
    assert not grown[1, 3, 6]
    assert grown[1, 3, 7]
    shrunk = BinaryOperators().apply(masks, {**draw, "operator": np.array([OPERATORS.index("erosion"), 0])})
    assert shrunk[0].sum() == 4
    np.testing.assert_array_equal(shrunk[1], masks[1])


def test_only_small_components_are_erased_one_at_a_time() -> None:
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, :10, :10] = True  # 25 % of the patch
    masks[0, 15:17, 15:17] = True
    masks[0, 17, 17] = True  # touches by a corner: the same component
    masks[0, 2, 15] = True
    kept = [
        ComponentRemoval().apply(masks, {"chosen": np.array([True]), "pick": np.array([pick])})[0]
        for pick in (0.0, 0.99)
    ]
    assert sorted(int(masks.sum() - one.sum()) for one in kept) == [1, 5]
    assert all(one[:10, :10].all() for one in kept)


def test_labels_become_channels_behind_the_image() -> None:
    labels = torch.zeros((1, 2, 4, 4), dtype=torch.int16)
    labels[0, 1, 0], labels[0, 1, 1], labels[0, 1, 2] = 1, 2, -1
    samples = Samples(images=torch.randn(1, 1, 4, 4), labels=labels)
    data = PreviousStage(labels=(1, 2)).append(samples, [{}])
    assert data.shape == (1, 3, 4, 4)
    assert torch.equal(data[:, :1], samples.images)
    assert torch.equal(data[0, 1], (labels[0, 1] == 1).float())
    assert torch.equal(data[0, 2], (labels[0, 1] == 2).float())
