"""Laws of the sliding window: every voxel is covered, and the result does not depend on the order of tiles."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.inference.window.stitching import stitch
from segwright.inference.window.tiling import axis_starts, gaussian_map, tiles

sizes = st.integers(1, 400)
steps = st.floats(0.1, 1.0)


@given(size=sizes, patch=sizes, step=steps)
def test_tiles_cover_an_axis_without_gaps_and_stay_inside(size: int, patch: int, step: float) -> None:
    size = max(size, patch)
    starts = axis_starts(size, patch, step)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    assert all(0 <= following - start <= patch for start, following in pairwise(starts))


@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    dims=st.sampled_from([2, 3]),
)
def test_every_voxel_gets_weight(shape: tuple[int, ...], patch: tuple[int, ...], dims: int) -> None:
    patch = patch[3 - dims :]
    shape = (*shape[: 3 - dims], *(max(size, extent) for size, extent in zip(shape[3 - dims :], patch, strict=True)))
    weights = gaussian_map(patch)
    totals = np.zeros(shape)
    for start in tiles(shape, patch):
        box = tuple(slice(low, low + size) for low, size in zip(start[3 - dims :], patch, strict=True))
        totals[(*start[: 3 - dims], *box)] += weights
    assert totals.min() > 0


@settings(deadline=None)
@given(shuffle=st.randoms(use_true_random=False), seed=st.integers(0, 99))
def test_the_result_does_not_depend_on_tile_order(shuffle, seed: int) -> None:  # type: ignore[no-untyped-def]
    shape, patch = (9, 10, 11), (4, 5, 6)
    generator = torch.Generator().manual_seed(seed)
    predicted = [(start, torch.randn((2, *patch), generator=generator)) for start in tiles(shape, patch)]
    weights = torch.from_numpy(gaussian_map(patch).copy())
    shuffled = []
    for _, layer in groupby(predicted, key=lambda tile: tile[0][0]):
        group = list(layer)
        shuffle.shuffle(group)
        shuffled += group
    first, second = (
        torch.cat([part.logits for part in stitch(order, shape=shape, weights=weights)], dim=1)
        for order in (predicted, shuffled)
    )
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
