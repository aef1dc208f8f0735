"""Chunk and block shapes of stored arrays, chosen so that a patch touches few of them (nnU-Net behaviour 6.6)."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, prod

BLOCK_BYTES = 128 * 1024
"""Largest block: fits a core's second-level cache, nnU-Net's value."""
CHUNK_BYTES = 6 * 1024 * 1024
"""Largest chunk, nnU-Net's value."""

_PATCH_SHARE = 1.5
"""Chunks do not grow beyond this many patches along an axis."""


def chunk_and_block(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunk and block shape of an array.

    Args:
        shape: (C, *S) with three spatial axes.
        patch_size: 2 or 3 axes; a 2D patch lies in the last two.
        itemsize: bytes per value.

    >>> chunk_and_block((1, 36, 50, 35), (40, 56, 40), 4)
    ((1, 36, 50, 35), (1, 32, 32, 32))
    """
    extents = list(shape[1:])
    is_flat = len(patch_size) == len(extents) - 1
    patch = [1, *patch_size] if is_flat else list(patch_size)
    target = [max(1, min(extent, floor(_PATCH_SHARE * size))) for extent, size in zip(extents, patch, strict=True)]
    block = [min(_power_of_two(size), extent) for size, extent in zip(patch, extents, strict=True)]
    while prod(block) * itemsize > min(BLOCK_BYTES, CHUNK_BYTES):
        axis = max(
            (axis for axis in range(len(block)) if block[axis] > 1), key=lambda axis: (block[axis] / target[axis], axis)
        )
        block[axis] = 1 << ((block[axis] - 1).bit_length() - 1)
    chunk = list(block)
    while True:
        grown: dict[int, list[int]] = {}
        for axis, (extent, size) in enumerate(zip(extents, patch, strict=True)):
            if (is_flat and axis == 0) or size == 1 or chunk[axis] >= min(extent, target[axis]):
                continue
            candidate = [*chunk]
            candidate[axis] = min(chunk[axis] + block[axis], extent, target[axis])
            if prod(candidate) * itemsize <= CHUNK_BYTES:
                grown[axis] = candidate
        if not grown:
            return (1, *chunk), (1, *block)
        chunk = grown[min(grown, key=lambda axis: (chunk[axis] / target[axis], -extents[axis], axis))]


def _power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()
