"""Draw large samples of intensities, and store them as distinct values with counts."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

DRAWS_AT_ONCE = 1 << 20
"""Bounds the memory of a draw; the stream of random numbers does not depend on it."""

MERGE_EVERY = 1 << 22
MAX_DISTINCT = 1 << 24
"""Pending values at which equal ones are merged, and distinct values (12 bytes each) at which they are rounded."""

ROUNDED_BITS = 6
"""Mantissa bits rounded off beyond `MAX_DISTINCT`: a relative error below 2^-18, 4e-6, in percentiles only."""


def draw(values: Values, num_draws: int, random: np.random.RandomState) -> tuple[Values, Counts]:
    """Draw with replacement, as `random.choice(values, num_draws)` does; return distinct values with counts.

    Args:
        values: (n,); if empty, no random numbers are drawn.
    """
    if not len(values):
        return np.empty(0, np.float32), np.empty(0, np.int64)
    blocks = [min(DRAWS_AT_ONCE, num_draws - start) for start in range(0, num_draws, DRAWS_AT_ONCE)]
    if len(values) > num_draws:
        # Many voxels, few draws: looking up the drawn values is cheaper than counting for every voxel.
        drawn = np.concatenate([values[random.randint(0, len(values), block)] for block in blocks])
        return _merged(drawn, None)
    counts = np.zeros(len(values), np.int64)
    for block in blocks:
        counts += np.bincount(random.randint(0, len(values), block), minlength=len(values))
    is_drawn = counts > 0
    return _merged(values[is_drawn], counts[is_drawn])


class WeightedSample:
    """Collects samples from many threads; its statistics do not depend on the order in which they arrive."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pending: list[tuple[Values, Counts]] = []
        self._num_pending = 0
        self._is_rounded = False
        self._parts: list[tuple[int, float, float]] = []  # count, mean, sum of squared deviations
        self.smallest = np.inf
        self.largest = -np.inf

    def add(self, values: Values, counts: Counts) -> None:
        """Add distinct values with their counts."""
        if not len(values):
            return
        total = int(counts.sum())
        exact = values.astype(np.float64)
        # Not a dot product, whose last digit depends on the alignment of its memory.
        mean = float((exact * counts).sum() / total)
        deviation = float((np.square(exact - mean) * counts).sum())
        with self._lock:
            self._parts.append((total, mean, deviation))
            self.smallest = min(self.smallest, float(values.min()))
            self.largest = max(self.largest, float(values.max()))
            self._pending.append((values, counts))
            self._num_pending += len(values)
            if self._num_pending > MERGE_EVERY:
                self._merge()

    def moments(self) -> tuple[float, float]:
        """Return mean and population standard deviation."""
        parts = sorted(self._parts)
        total = sum(count for count, _, _ in parts)
        mean = sum(count * part for count, part, _ in parts) / total
        squares = sum(deviation + count * (part - mean) ** 2 for count, part, deviation in parts)
        return mean, float(np.sqrt(squares / total))

    def percentiles(self, percentages: Sequence[float]) -> list[float]:
        """Return percentiles, linear between order statistics as numpy's default."""
        with self._lock:
            values, counts = self._merge()
        last_rank = np.cumsum(counts) - 1
        position = np.array(percentages) / 100 * last_rank[-1]
        lower = np.floor(position)
        below = values[np.searchsorted(last_rank, lower)].astype(np.float64)
        above = values[np.searchsorted(last_rank, np.ceil(position))].astype(np.float64)
        return [float(value) for value in below + (above - below) * (position - lower)]

    def _merge(self) -> tuple[Values, Counts]:
        """Merge pending values into one list of distinct ones; round them once they are too many."""
        values = np.concatenate([part for part, _ in self._pending])
        counts = np.concatenate([part for _, part in self._pending])
        if self._is_rounded:
            values = _rounded(values)
        values, counts = _merged(values, counts)
        if len(values) > MAX_DISTINCT and not self._is_rounded:
            self._is_rounded = True
            values, counts = _merged(_rounded(values), counts)
        self._pending = [(values, counts)]
        # Merge again only after `MERGE_EVERY` more values.
        self._num_pending = 0
        return values, counts


def _merged(values: Values, counts: Counts | None) -> tuple[Values, Counts]:
    """Return the distinct values ascending, with their summed counts (None: each counts once)."""
    if counts is None:
        values = np.sort(values)
    else:
        order = np.argsort(values)
        values, counts = values[order], counts[order]
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    if counts is None:
        return values[starts], np.diff(np.append(starts, len(values)))
    return values[starts], np.add.reduceat(counts, starts)


def _rounded(values: Values) -> Values:
    half = np.uint32(1 << (ROUNDED_BITS - 1))
    mask = np.uint32(0xFFFFFFFF << ROUNDED_BITS & 0xFFFFFFFF)
    return ((values.view(np.uint32) + half) & mask).view(np.float32)
