"""Average overlapping tiles by weight, with one patch depth in memory: planes leave once no later tile covers them.

Legend: H heads, (Z, Y, X) the padded image, (D, h, w) the tile (D = 1 for 2D networks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from segwright.inference.window.tiling import Start

PORTION_BYTES = 2 * 2**20
"""Size of finished planes, and of weighted logits of a tile, in addition to the sums. It is small because the number of
planes that threads still decide varies, and the process keeps the memory of the largest number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Finished logits of the planes [start, stop) of axis 0."""

    start: int
    stop: int
    logits: Any  # (H, stop - start, Y, X) float32, a tensor, or an array of numpy without torch


def stitch(
    predicted: Iterable[tuple[Start, Any]],
    *,
    shape: Sequence[int],
    weights: Any,
    quantum: float = 0.0,
    portion_bytes: int = PORTION_BYTES,
) -> Iterator[Planes]:
    """Yield the weighted mean of all tiles, tensors or arrays of numpy, a few planes at a time.

    The result is independent of the tile order within one start of axis 0 up to the rounding of the sums, which have
    the type of `weights`.

    Args:
        predicted: tile start (z, y, x) and logits (H, D, h, w); starts ascend along axis 0.
        shape: (Z, Y, X); every voxel must be covered.
        weights: (D, h, w) positive, an array or, on the device of the tiles, a tensor.
        quantum: weighted logits are rounded to multiples of it; 0 switches rounding off. The spacing of the smallest
            float16 numbers gives the rounding of nnU-Net's float16 sums where only the edges of tiles meet, without
            their overflow.
        portion_bytes: size of the yielded planes, at least one plane.
    """
    buffer: _Ring | None = None
    for start, logits in predicted:
        if buffer is None:
            buffer = _Ring(len(logits), shape, weights, quantum, portion_bytes)
        yield from buffer.advance(start[0])
        buffer.add(start, logits)
        del logits  # or it would be in memory while the next one is computed
    assert buffer is not None, "there is always at least one tile"
    yield from buffer.advance(shape[0])


class _Ring:
    """Sums of the last D planes; plane z lives in slot z modulo D."""

    def __init__(self, num_heads: int, shape: Sequence[int], weights: Any, quantum: float, portion_bytes: int) -> None:
        # Counted in units of the quantum, so that rounding to whole numbers is rounding to multiples of it.
        self.weights = weights / quantum if quantum else weights
        self.rounds = bool(quantum)
        self.depth = weights.shape[0]
        self.done = 0
        self.sums = _zeros_like(weights, (num_heads, self.depth, *shape[1:]))
        self.totals = _zeros_like(weights, (self.depth, *shape[1:]))
        self.portion = max(1, portion_bytes // (4 * num_heads * prod(shape[1:])))
        self.heads = max(1, portion_bytes // (4 * prod(weights.shape)))

    def advance(self, until: int) -> Iterator[Planes]:
        """Yield the planes before `until` and clear their slots."""
        assert until >= self.done, "tiles must ascend along axis 0"
        while self.done < until:
            first = self.done % self.depth
            size = min(until - self.done, self.depth - first, self.portion)
            slots = slice(first, first + size)
            mean = _to_float32(self.sums[:, slots] / self.totals[slots])
            self.sums[:, slots] = 0
            self.totals[slots] = 0
            self.done += size
            yield Planes(start=self.done - size, stop=self.done, logits=mean)

    def add(self, start: Start, logits: Any) -> None:
        """Add one tile, a few heads at a time."""
        rows, columns = (slice(low, low + size) for low, size in zip(start[1:], self.weights.shape[1:], strict=True))
        for slots, offset in self._segments(start[0]):
            part = slice(offset, offset + slots.stop - slots.start)
            weights = self.weights[part]
            self.totals[slots, rows, columns] += weights
            for head in range(0, len(logits), self.heads):
                heads = slice(head, head + self.heads)
                weighted = logits[heads, part] * weights
                self.sums[heads, slots, rows, columns] += _round_inplace(weighted) if self.rounds else weighted

    def _segments(self, start: int) -> Iterator[tuple[slice, int]]:
        """Split the planes of a tile into runs of consecutive slots, each with its offset from `start`."""
        slot = start % self.depth
        yield slice(slot, self.depth), 0
        if slot:
            yield slice(0, slot), self.depth - slot


def _zeros_like(array: Any, shape: tuple[int, ...]) -> Any:
    """Return zeros of the library, dtype and device of an array."""
    return np.zeros(shape, array.dtype) if isinstance(array, np.ndarray) else array.new_zeros(shape)


def _to_float32(array: Any) -> Any:
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.float()


def _round_inplace(array: Any) -> Any:
    return np.rint(array, out=array) if isinstance(array, np.ndarray) else array.round_()
