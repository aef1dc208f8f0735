"""Apply the positions and weights of `operators` to numpy arrays; see `resampling.ArrayOperators`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.preprocessing.operators import IndexArray, bands, linear_samples

Floats = npt.NDArray[np.float32]


def spline(
    volume: Floats, axis: int, old: int, new: int, *, order: int, rows: tuple[int, int] | None = None, first: int = 0
) -> Floats:
    """Resize `axis` of a float32 volume (C, *S) by a spline of `order` >= 2."""
    start, stop = rows or (0, new)
    lead = int(np.prod(volume.shape[:axis]))
    columns = volume.reshape(lead, volume.shape[axis], -1)  # (lead, old, trail)
    result = np.empty((lead, stop - start, columns.shape[2]), dtype=np.float32)
    for band in bands(old, new, order):
        low, high = max(band.rows[0], start), min(band.rows[1], stop)
        if low >= high:
            continue
        weights = band.weights[low - band.rows[0] : high - band.rows[0]]
        inputs = columns[:, band.columns[0] - first : band.columns[1] - first]
        if columns.shape[2] == 1:
            result[:, low - start : high - start, 0] = inputs[:, :, 0] @ weights.T
        else:
            np.matmul(weights, inputs, out=result[:, low - start : high - start])
    return result.reshape(*volume.shape[:axis], stop - start, *volume.shape[axis + 1 :])


def linear_planes(volume: Floats, old: int, new: int, *, rows: tuple[int, int] | None = None, first: int = 0) -> Floats:
    """Resize axis 1 of a volume (C, D, H, W) linearly."""
    start, stop = rows or (0, new)
    samples = linear_samples(old, new)
    result = np.empty((volume.shape[0], stop - start, *volume.shape[2:]), dtype=np.float32)
    for plane in range(start, stop):
        low, high = volume[:, samples.low[plane] - first], volume[:, samples.high[plane] - first]
        result[:, plane - start] = _between(low, high, np.float32(samples.weight[plane]))
    return result


def linear_in_plane(volume: Floats, shape: Sequence[int]) -> Floats:
    """Resize the last two axes of a volume (C, D, H, W) linearly."""
    for axis, new in zip((2, 3), shape, strict=True):
        old = volume.shape[axis]
        if old != new:
            samples = linear_samples(old, new)
            weight = samples.weight.astype(np.float32).reshape(-1, *[1] * (3 - axis))
            volume = _between(volume.take(samples.low, axis), volume.take(samples.high, axis), weight)
    return volume


def gather(volume: Floats, axis: int, indices: IndexArray) -> Floats:
    """Pick samples along one axis."""
    return volume.take(indices, axis)


def clip_inplace(volume: Floats, source: npt.NDArray[Any], axes: Sequence[int]) -> Floats:
    """Clip a volume (C, *S) to the range of `source` over `axes`."""
    return np.clip(volume, source.min(tuple(axes), keepdims=True), source.max(tuple(axes), keepdims=True), out=volume)


def to_float32(volume: npt.NDArray[Any]) -> Floats:
    """Return the volume in float32, the same array if it is."""
    return volume.astype(np.float32, copy=False)


def concatenate(volumes: Sequence[Floats], axis: int) -> Floats:
    """Join volumes along an axis."""
    return np.concatenate(volumes, axis=axis)


def _between(low: Floats, high: Floats, weight: Any) -> Floats:
    """Interpolate, with `weight` for `high`."""
    result: Floats = high - low
    result *= weight
    result += low
    return result
