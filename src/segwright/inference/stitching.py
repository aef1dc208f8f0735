"""Put overlapping tiles together by weighted mean, holding one patch depth: planes no later tile touches leave early.

Legend: H heads, (Z, Y, X) the padded image, (D, h, w) the tile (D = 1 for 2D networks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from segwright.inference.windows import Start


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Finished logits of the planes [start, stop) of axis 0."""

    start: int
    stop: int
    logits: Tensor  # (H, stop - start, Y, X) float32


def stitch(predicted: Iterable[tuple[Start, Tensor]], *, shape: Sequence[int], weights: Tensor) -> Iterator[Planes]:
    """Yield the weighted mean of all tiles, plane by plane.

    The result is independent of the tile order within one start of axis 0 up to the rounding of the sums, which have
    the type of `weights`: float32, or float16 for what nnU-Net does. In float16 the tiny weights at the edges of tiles
    hold one or two digits, so where only edges meet (at the border of the image) logits are off by up to a tenth.

    Args:
        predicted: tile start (z, y, x) and logits (H, D, h, w); starts ascend along axis 0.
        shape: (Z, Y, X); every voxel must be covered.
        weights: (D, h, w) positive, on the device of the tiles.
    """
    buffer: _Ring | None = None
    for start, logits in predicted:
        if buffer is None:
            buffer = _Ring(len(logits), shape, weights)
        yield from buffer.advance(start[0])
        buffer.add(start, logits)
    assert buffer is not None, "there is always at least one tile"
    yield from buffer.advance(shape[0])


class _Ring:
    """Sums of the last D planes; plane z lives in slot z modulo D."""

    def __init__(self, num_heads: int, shape: Sequence[int], weights: Tensor) -> None:
        self.weights = weights
        self.depth = weights.shape[0]
        self.done = 0
        self.sums = weights.new_zeros((num_heads, self.depth, *shape[1:]))
        self.totals = weights.new_zeros((self.depth, *shape[1:]))

    def advance(self, until: int) -> Iterator[Planes]:
        """Hand out the planes before `until` and clear their slots."""
        assert until >= self.done, "tiles must ascend along axis 0"
        for slots, offset in self._segments(self.done, until - self.done):
            size = slots.stop - slots.start
            first = self.done + offset
            mean = (self.sums[:, slots] / self.totals[slots]).float()
            yield Planes(start=first, stop=first + size, logits=mean)
            self.sums[:, slots] = 0
            self.totals[slots] = 0
        self.done = until

    def add(self, start: Start, logits: Tensor) -> None:
        """Add one tile."""
        rows, columns = (slice(low, low + size) for low, size in zip(start[1:], self.weights.shape[1:], strict=True))
        weighted = logits * self.weights
        for slots, offset in self._segments(start[0], self.depth):
            part = slice(offset, offset + slots.stop - slots.start)
            self.sums[:, slots, rows, columns] += weighted[:, part]
            self.totals[slots, rows, columns] += self.weights[part]

    def _segments(self, start: int, size: int) -> Iterator[tuple[slice, int]]:
        """Split `size` planes from `start` on into runs of consecutive slots, each with its offset from `start`."""
        offset = 0
        while offset < size:
            slot = (start + offset) % self.depth
            run = min(self.depth - slot, size - offset)
            yield slice(slot, slot + run), offset
            offset += run
