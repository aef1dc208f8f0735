"""The sample of voxels per class (nnU-Net behaviour 6.5); equality with nnU-Net is in the goldens."""

from __future__ import annotations

import numpy as np

from segwright.preprocessing.class_locations import MIN_VOXELS, class_locations


def test_small_classes_are_complete() -> None:
    label = np.zeros((1, 4, 5, 6), dtype=np.int16)
    label[0, 1, 2:4, 3] = 2
    voxels = class_locations(label, (1, 2))
    assert len(voxels[1]) == 0
    assert {tuple(voxel) for voxel in voxels[2].tolist()} == {(1, 2, 3), (1, 3, 3)}


def test_large_classes_are_sampled_without_repetition() -> None:
    label = np.ones((1, 30, 30, 30), dtype=np.int16)
    voxels = class_locations(label, (1,))[1]
    assert len(voxels) == MIN_VOXELS == len(np.unique(voxels, axis=0))


def test_very_large_classes_keep_one_percent() -> None:
    label = np.ones((1, 110, 100, 100), dtype=np.int16)
    assert len(class_locations(label, (1,))[1]) == 11000


def test_a_region_holds_the_voxels_of_its_labels() -> None:
    label = np.array([0, 1, 2, 3, -1, 2], dtype=np.int16).reshape(1, 1, 1, 6)
    voxels = class_locations(label, ((1, 2), 3, (-1, 0, 1, 2)))
    assert sorted(voxels[1, 2][:, 2].tolist()) == [1, 2, 5]
    assert voxels[3][:, 2].tolist() == [3]
    assert sorted(voxels[-1, 0, 1, 2][:, 2].tolist()) == [0, 1, 2, 4, 5]


def test_the_sample_is_always_the_same() -> None:
    label = np.ones((1, 30, 30, 30), dtype=np.int16)
    assert np.array_equal(class_locations(label, (1,))[1], class_locations(label, (1,))[1])
