from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from segwright.data.cropping import content_box, crop_to_nonzero


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a hollow block whose hole is closed, and a label inside, in the hole and outside."""
    image = np.zeros((2, 9, 9, 9), np.float32)
    image[0, 2:7, 2:7, 2:7] = 3
    image[1, 2:7, 2:7, 7] = -1
    image[0, 4, 4, 4] = 0
    image[0, 2, 2, 2] = 0
    label = np.zeros((1, 9, 9, 9), np.float32)
    label[0, 3, 3, 3] = 2
    label[0, 2, 2, 2] = 1
    return image, label


def test_image_and_label_are_cut_to_the_box_of_all_channels() -> None:
    image, label = scene()

    cropped, marked, box = crop_to_nonzero(image, label)

    assert box == content_box(image) == ((2, 7), (2, 7), (2, 8))
    np.testing.assert_array_equal(cropped, image[:, 2:7, 2:7, 2:8])
    assert marked.shape == (1, 5, 5, 6)
    assert marked.dtype == np.int16


def test_closed_holes_are_inside_and_labels_outside_are_kept() -> None:
    image, label = scene()

    _, marked, _ = crop_to_nonzero(image, label)

    assert marked[0, 2, 2, 2] == 0  # the hole
    assert marked[0, 0, 0, 0] == 1  # outside the mask, but labelled
    assert marked[0, 1, 1, 1] == 2
    assert not (marked == -1).any()


def test_background_outside_the_mask_is_marked() -> None:
    image, label = scene()
    label[0, 2, 2, 2] = 0

    _, marked, _ = crop_to_nonzero(image, label)

    assert marked[0, 0, 0, 0] == -1
    assert (marked == -1).sum() == 1


def test_without_label_the_mask_itself_is_given() -> None:
    image, _ = scene()

    _, marked, _ = crop_to_nonzero(image, None)

    assert marked[0, 0, 0, 0] == -1
    assert (marked == 0).sum() == marked.size - 1


def test_empty_image_keeps_its_box_and_is_all_outside() -> None:
    cropped, marked, box = crop_to_nonzero(np.zeros((1, 3, 4, 5), np.float32), np.zeros((1, 3, 4, 5)))

    assert box == ((0, 3), (0, 4), (0, 5))
    assert cropped.shape == (1, 3, 4, 5)
    assert (marked == -1).all()


def test_holes_of_a_single_slice_stay_open() -> None:
    image = np.ones((1, 1, 7, 7), np.float32)
    image[0, 0, 3, 3] = 0

    assert crop_to_nonzero(image, None)[1][0, 0, 3, 3] == -1


@pytest.mark.parametrize("seed", range(5))
def test_holes_are_those_that_scipy_fills(seed: int) -> None:
    image = (np.random.RandomState(seed).rand(1, 10, 11, 12) < 0.75).astype(np.float32)
    image[0, :2] = 0

    _, marked, box = crop_to_nonzero(image, None)

    filled = ndimage.binary_fill_holes(image[0] != 0)
    np.testing.assert_array_equal(marked[0] == 0, filled[tuple(slice(*pair) for pair in box)])


def test_arguments_are_left_alone() -> None:
    image, label = scene()
    copies = image.copy(), label.copy()

    crop_to_nonzero(image, label)[1][:] = 9

    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(label, copies[1])
