"""Laws of sampling: for any case, patch and class, a patch shows the case where the case is and padding elsewhere."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.augmentation.recipe import Recipe
from segwright.augmentation.spatial import Affine
from segwright.core.boxes import box_shape
from segwright.data.labels import Labels
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache
from segwright.training.loading.sampling import choose_class, choose_start, read_box, start_range

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
sizes = st.tuples(*[st.integers(1, 13)] * 3)


@dataclass
class Case:
    image: npt.NDArray[Any]
    label: npt.NDArray[Any]
    class_locations: dict[Any, Any]


@dataclass
class Store:
    """One case whose voxels tell their own place: 1 plus the flat index, no voxel 0."""

    shape: tuple[int, ...]
    seed: int

    def load(self, identifier: str) -> Case:
        rng = np.random.default_rng(self.seed)
        image = np.arange(1, np.prod(self.shape) + 1, dtype=np.float32).reshape(1, *self.shape)
        label = rng.choice(4, p=[0.7, 0.1, 0.1, 0.1], size=(1, *self.shape)).astype(np.int16)
        locations = {key: np.argwhere(label[0] == key) for key in (1, 2)}
        annotated = np.argwhere(label[0] != 3)
        return Case(image, label, {**locations, (-1, 0, 1, 2): annotated})


def cut(array: npt.NDArray[Any], start: tuple[int, ...], patch: tuple[int, ...], fill: float) -> npt.NDArray[Any]:
    """Return a patch voxel by voxel: the array's value inside it, `fill` outside."""
    result = np.full(patch, fill, dtype=np.float64)
    for index in itertools.product(*map(range, patch)):
        place = tuple(low + step for low, step in zip(start, index, strict=True))
        if all(0 <= position < size for position, size in zip(place, array.shape, strict=True)):
            result[index] = array[place]
    return result


def require_placed(start: tuple[int, ...], shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Padding only where the case is smaller than the patch, and then on both sides alike, to one voxel."""
    for low, size, width in zip(start, shape, patch, strict=True):
        if width <= size:
            assert low >= 0
            assert low + width <= size
        else:
            before, after = -low, low + width - size
            assert abs(before - after) <= 1


@settings(max_examples=60, deadline=None)
@given(shape=sizes, patch=sizes, dims=st.sampled_from([2, 3]), seed=st.integers(0, 10**6), held=st.booleans())
def test_every_voxel_of_a_plain_patch_is_the_cases_own_or_padding(
    shape: tuple[int, ...], patch: tuple[int, ...], dims: int, seed: int, held: bool
) -> None:
    store = Store(shape, seed)
    placement = CachePlacement(location="ram", budget_bytes=2**30) if held else CachePlacement()
    loader = BatchLoader(
        CaseCache(store, placement), ["case"], patch_size=patch[-dims:], batch_size=4, labels=LABELS, seed=seed
    )
    case, batch = store.load("case"), loader.batch(0, 0)
    target = batch["target"]
    assert isinstance(target, torch.Tensor)
    whole = patch if dims == 3 else (1, *patch[1:])
    for index, draw in enumerate(loader.draw(0, 0)):
        require_placed(draw.start, shape, whole)
        shown, labelled = batch["data"][index, 0].numpy(), target[index, 0].numpy()
        np.testing.assert_array_equal(shown.reshape(whole), cut(case.image[0], draw.start, whole, 0.0))
        np.testing.assert_array_equal(labelled.reshape(whole), cut(case.label[0], draw.start, whole, 0))


@settings(max_examples=60, deadline=None)
@given(shape=sizes, patch=sizes, seed=st.integers(0, 10**6))
def test_a_patch_placed_on_any_location_of_any_class_shows_it(
    shape: tuple[int, ...], patch: tuple[int, ...], seed: int
) -> None:
    locations = Store(shape, seed).load("case").class_locations
    rng = np.random.default_rng(seed)
    for places in locations.values():
        for place in places:
            start = choose_start(shape, patch, rng, voxels=place[None])
            require_placed(start, shape, patch)
            inside = zip(start, place, patch, strict=True)
            assert all(low <= position < low + width for low, position, width in inside)


@settings(max_examples=40, deadline=None)
@given(shape=sizes, patch=sizes)
def test_every_start_is_allowed_and_every_voxel_seen(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    for size, width, (low, high) in zip(shape, patch, start_range(shape, patch), strict=True):
        seen = set()
        for start in range(low, high):
            require_placed((start,), (size,), (width,))
            seen |= set(range(start, start + width)) & set(range(size))
        assert seen == set(range(size))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), present=st.sets(st.integers(1, 6), min_size=1))
def test_every_class_that_a_case_has_is_chosen(seed: int, present: set[int]) -> None:
    locations = {key: np.zeros((int(key in present), 3), int) for key in range(1, 7)}
    rng = np.random.default_rng(seed)
    chosen = {choose_class(locations, rng, forced=True, has_ignore=False) for _ in range(40 * len(present))}
    assert chosen == present


@settings(max_examples=60, deadline=None)
@given(shape=sizes, low=st.tuples(*[st.integers(-30, 30)] * 3), extent=sizes, as_tensor=st.booleans())
def test_any_box_is_read_as_voxels_and_padding(
    shape: tuple[int, ...], low: tuple[int, ...], extent: tuple[int, ...], as_tensor: bool
) -> None:
    array = Store(shape, 0).load("case").image
    box = tuple((start, start + size) for start, size in zip(low, extent, strict=True))
    out = np.full((1, *box_shape(box)), np.nan, dtype=np.float32)
    if as_tensor:
        read_box(torch.from_numpy(array), box, fill=-1.0, out=torch.from_numpy(out))
    else:
        read_box(array, box, fill=-1.0, out=out)
    np.testing.assert_array_equal(out[0], cut(array[0], low, extent, -1.0))


@dataclass
class Bright:
    """A case of ones with label 1 everywhere."""

    shape: tuple[int, ...]

    def load(self, identifier: str) -> Case:
        ones = np.ones((1, *self.shape))
        return Case(ones.astype(np.float32), ones.astype(np.int16), {1: np.argwhere(ones[0])})


@pytest.mark.parametrize("in_plane", [False, True])
@settings(max_examples=40, deadline=None)
@given(shape=sizes, patch=sizes, seed=st.integers(0, 10**6), held=st.booleans())
def test_a_turned_patch_shows_the_case_wherever_it_looks_into_it(
    in_plane: bool, shape: tuple[int, ...], patch: tuple[int, ...], seed: int, held: bool
) -> None:
    """Corners too: however far the transform reaches, only what lies beyond the case is padding."""
    affine = Affine(rotation=(-3.1, 3.1), rotation_probability=0.8, scaling_probability=0.8, in_plane=in_plane)
    placement = CachePlacement(location="ram", budget_bytes=2**30) if held else CachePlacement()
    loader = BatchLoader(
        CaseCache(Bright(shape), placement), ["case"], patch_size=patch, batch_size=3, labels=LABELS, seed=seed,
        recipe=Recipe(spatial=affine),
    )  # fmt: skip
    batch = loader.batch(0, 0)
    target = batch["target"]
    assert isinstance(target, torch.Tensor)
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2 for size in patch], indexing="ij"))
    for index, draw in enumerate(loader.draw(0, 0)):
        matrix = np.eye(3) if draw.matrix is None else draw.matrix
        centre = [low + (size - 1) / 2 for low, size in zip(draw.start, patch, strict=True)]
        where = np.tensordot(matrix, grid, axes=1) + np.reshape(centre, (3, 1, 1, 1))
        last = np.reshape(shape, (3, 1, 1, 1)) - 1
        inside = ((where >= 1e-3) & (where <= last - 1e-3) | (last == 0) & (np.abs(where) < 1e-6)).all(axis=0)
        beyond = ((where <= -1 - 1e-3) | (where >= last + 1 + 1e-3)).any(axis=0)
        shown, labelled = batch["data"][index, 0].numpy(), target[index, 0].numpy()
        np.testing.assert_allclose(shown[inside], 1.0, atol=1e-4)
        np.testing.assert_array_equal(shown[beyond], 0.0)
        assert (labelled[inside] == 1).all()
        assert (labelled[beyond] == 0).all()
        assert shown.min() >= -1e-6
        assert shown.max() <= 1 + 1e-6
