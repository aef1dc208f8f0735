"""The phantom dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from segwright.data import checks
from segwright.data.phantom import make_phantom, write_dataset


def test_a_phantom_is_the_same_every_time_and_unlike_the_next() -> None:
    first, again, other = make_phantom(3, edge=24), make_phantom(3, edge=24), make_phantom(4, edge=24)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.image.shape != other.image.shape or not np.array_equal(first.label, other.label)


def test_two_structures_of_different_size_touch() -> None:
    for index in range(16):
        label = make_phantom(index).label
        organ, lesion = label == 1, label == 2
        assert organ.sum() > 1.5 * lesion.sum() > 0
        assert (ndimage.binary_dilation(lesion) & organ).any()


def test_the_dataset_is_clean_and_left_alone_once_written(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset900_Phantom"
    write_dataset(folder, num_training=2, num_test=1, edge=16)
    findings = checks.check(folder)
    assert findings.errors == ()
    assert len(list((folder / "imagesTs").iterdir())) == 1
    label = folder / "labelsTr" / "phantom_001.nii.gz"
    before = label.stat().st_mtime_ns
    write_dataset(folder, num_training=2, num_test=1, edge=16)
    assert label.stat().st_mtime_ns == before
