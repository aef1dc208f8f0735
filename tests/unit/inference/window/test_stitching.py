"""The rolling weighted mean of tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segwright.inference.window.stitching import stitch
from segwright.inference.window.tiling import Start, tiles

SHAPE = (11, 9, 8)
PATCH = (4, 6, 8)


def random_tiles(seed: int = 0) -> list[tuple[Start, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(start, torch.randn((3, *PATCH), generator=generator)) for start in tiles(SHAPE, PATCH)]


def all_at_once(predicted: list[tuple[Start, Tensor]], weights: Tensor) -> Tensor:
    """Return the weighted mean in float64, with accumulators as large as the image."""
    sums, totals = torch.zeros((3, *SHAPE), dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    for start, logits in predicted:
        box = tuple(slice(low, low + size) for low, size in zip(start, PATCH, strict=True))
        sums[(slice(None), *box)] += logits.double() * weights
        totals[box] += weights
    return sums / totals


def test_rolling_equals_all_at_once() -> None:
    weights = torch.rand(PATCH, generator=torch.Generator().manual_seed(1)) + 0.01
    predicted = random_tiles()
    planes = list(stitch(predicted, shape=SHAPE, weights=weights))
    torch.testing.assert_close(
        torch.cat([part.logits for part in planes], dim=1).double(),
        all_at_once(predicted, weights),
        rtol=1e-5,
        atol=1e-6,
    )


def test_planes_come_once_each_and_in_order() -> None:
    covered = [
        plane
        for part in stitch(random_tiles(), shape=SHAPE, weights=torch.ones(PATCH))
        for plane in range(part.start, part.stop)
    ]
    assert covered == list(range(SHAPE[0]))


def test_planes_leave_before_the_last_tile_is_there() -> None:
    """The bound on memory: while tiles are still to come, the early planes are out already."""
    predicted = random_tiles()
    seen: list[int] = []

    def watched() -> list[tuple[Start, Tensor]]:
        for index, tile in enumerate(predicted):
            seen.append(index)
            yield tile

    first = next(stitch(watched(), shape=SHAPE, weights=torch.ones(PATCH)))
    assert first.start == 0
    assert len(seen) < len(predicted) / 2


def test_tiles_that_go_back_are_refused() -> None:
    predicted = random_tiles()
    with pytest.raises(AssertionError, match="ascend"):
        list(stitch(predicted[::-1], shape=SHAPE, weights=torch.ones(PATCH)))


def test_portions_are_as_small_as_asked_for() -> None:
    predicted = random_tiles()
    weights = torch.ones(PATCH)
    small = list(stitch(predicted, shape=SHAPE, weights=weights, portion_bytes=1))
    assert [part.stop - part.start for part in small] == [1] * SHAPE[0]
    large = list(stitch(predicted, shape=SHAPE, weights=weights))
    torch.testing.assert_close(*(torch.cat([part.logits for part in parts], dim=1) for parts in (small, large)))


def test_weighted_logits_are_rounded_to_whole_quanta() -> None:
    """What float16 sums do to their smallest numbers, which are whole multiples of one."""
    quantum = 2.0**-24
    weights = torch.full(PATCH, 2 * quantum)
    predicted = random_tiles()
    rounded = [(start, (logits * 2).round() / 2) for start, logits in predicted]
    found = torch.cat([p.logits for p in stitch(predicted, shape=SHAPE, weights=weights, quantum=quantum)], dim=1)
    expected = torch.cat([p.logits for p in stitch(rounded, shape=SHAPE, weights=weights)], dim=1)
    torch.testing.assert_close(found, expected)
