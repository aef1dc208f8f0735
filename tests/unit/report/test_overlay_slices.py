"""Slices that show the classes of a volume."""

from __future__ import annotations

import numpy as np

from segwright.report.overlays.slices import choose_slices, class_areas


def test_areas_are_counted_for_each_class_and_slice() -> None:
    positions = np.zeros((2, 3, 4), dtype=np.uint16)
    positions[1, 0] = 2
    positions[0, 2, 1] = 1
    positions[0, 0, 0] = 3  # in no class
    assert class_areas(positions, 2, axis=0).tolist() == [[1, 0], [0, 4]]
    assert class_areas(positions, 2, axis=2).tolist() == [[0, 1, 0, 0], [1, 1, 1, 1]]


def test_a_rare_class_counts_as_much_as_a_large_one() -> None:
    areas = np.zeros((3, 60), dtype=np.int64)
    areas[0, 5:55] = 1000
    areas[1, 50] = 3
    areas[2, 7:9] = 2
    assert (areas[1:, list(choose_slices(areas, 2))] > 0).any(axis=1).all()
    chosen = choose_slices(areas, 3)
    assert (areas[:, list(chosen)] > 0).any(axis=1).all()


def test_slices_of_one_class_are_spread_over_it_where_it_is_large() -> None:
    areas = np.zeros((1, 100), dtype=np.int64)
    areas[0, 20:81] = 900 - (np.arange(20, 81) - 50) ** 2
    chosen = choose_slices(areas, 3)
    assert chosen[1] - chosen[0] > 8
    assert chosen[2] - chosen[1] > 8
    assert areas[0, list(chosen)].min() > 300
    assert abs(choose_slices(areas, 1)[0] - 50) < 3


def test_no_slice_is_added_that_shows_nothing_more() -> None:
    areas = np.zeros((2, 9), dtype=np.int64)
    areas[:, 4] = 7
    assert choose_slices(areas, 4) == (4,)


def test_without_labels_slices_are_spread_evenly() -> None:
    assert choose_slices(np.zeros((2, 41), dtype=np.int64), 3) == (10, 20, 30)
    assert choose_slices(np.zeros((0, 1), dtype=np.int64), 4) == (0,)
