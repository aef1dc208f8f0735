"""Skeletons keep components, holes and tunnels of a mask, and are thin; tubes stay inside the foreground."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segwright.data.labels import Labels
from segwright.training.losses.skeletons import skeletonize, tube, tubes

Mask = NDArray[np.bool_]


def topology(mask: Mask) -> tuple[int, int, int]:
    """Return the numbers of components, of background components, and the Euler characteristic of the closed voxels."""
    padded = np.pad(mask, 1)
    euler = 0
    for spread in product((0, 1), repeat=mask.ndim):  # the cells that extend along the axes where spread is 0
        cells: Any = padded
        for axis in np.flatnonzero(spread):
            cells = np.logical_or(
                np.take(cells, range(cells.shape[axis] - 1), axis), np.take(cells, range(1, cells.shape[axis]), axis)
            )
        euler += (-1) ** (mask.ndim - sum(spread)) * int(cells.sum())
    corners = np.ones((3,) * mask.ndim)
    return ndimage.label(padded, corners)[1], ndimage.label(~padded)[1], euler


def blobs(seed: int, shape: tuple[int, ...], width: float) -> Mask:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), width)
    return np.asarray(field > np.quantile(field, 0.6))


@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(14, 18), (7, 9, 8)]),
    width=st.sampled_from([0.0, 0.7, 1.5]),
)
@settings(max_examples=8, deadline=None)
def test_a_skeleton_has_the_topology_of_its_mask_and_is_its_own(
    seed: int, shape: tuple[int, ...], width: float
) -> None:
    mask = blobs(seed, shape, width)
    found = skeletonize(mask)
    assert topology(found) == topology(mask)
    assert not (found & ~mask).any()
    assert np.array_equal(skeletonize(found), found)
    assert (tube(mask) <= mask).all()
    assert (found <= tube(mask)).all()


def test_topology_counts_holes_and_tunnels() -> None:
    ring = np.ones((1, 3, 3), dtype=bool)
    ring[0, 1, 1] = False
    shell = np.ones((3, 3, 3), dtype=bool)
    shell[1, 1, 1] = False
    assert (topology(ring), topology(shell), topology(shell[1])) == ((1, 1, 0), (1, 2, 2), (1, 2, 0))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_skeleton_of_a_bar_is_its_centre_line(dims: int) -> None:
    mask = np.zeros((9, 9, 40)[-dims:], dtype=bool)
    bar: Any = (*(slice(2, 7),) * (dims - 1), slice(3, 37))
    mask[bar] = True
    middle: Any = (4,) * (dims - 1)
    line = skeletonize(mask)[middle]
    assert line[6:34].all()
    assert tube(mask, radius=1)[..., 20].sum() == 2 * dims - 1


def test_a_line_is_its_own_skeleton_and_nothing_stays_nothing() -> None:
    line = np.zeros((7, 12), dtype=bool)
    line[3, 2:10] = True
    assert np.array_equal(skeletonize(line), line)
    assert not tube(np.zeros((4, 5, 6), dtype=bool)).any()


def test_tubes_are_in_no_background_and_in_no_ignored_voxel() -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
    maps = torch.zeros((2, 1, 9, 20), dtype=torch.int16)
    maps[0, 0, 2:7, 2:10], maps[0, 0, 2:7, 10:18] = 1, 2
    maps[0, 0, 6] = 3
    maps[1] = -1
    found = tubes(maps, labels)
    assert (found.dtype, found.shape) == (torch.bool, maps.shape)
    assert set(maps[found].tolist()) == {1, 2}
    assert not found[1].any()
