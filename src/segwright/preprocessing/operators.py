"""Positions and weights of resampling: spline zoom as one small matrix per axis, linear and nearest neighbours.

`numpy_operators` and `torch_operators` apply them to arrays.

Zooming with B-splines is linear and separable, so resizing a volume is one matrix product per axis. The matrix of an
axis is computed once by zooming the identity with `scipy.ndimage.zoom` (grid mode, edges repeated), which equals what
nnU-Net 2.8.1 computes voxel by voxel through scikit-image (nnU-Net behaviour 6.4.2). Its rows are near 0 beyond a few
voxels, so it is applied in bands of rows: far fewer multiplications, and a slab of output planes needs few input
planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

_BAND_ROWS = 64
"""Output samples per band: large enough for a fast matrix product, small enough to skip most zeros (measured)."""
_NEGLIGIBLE = 1e-9
"""Weights below this are dropped; they contribute far less than float32 resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSamples:
    """Input neighbours and interpolation weight of each output sample of an axis."""

    low: IndexArray
    high: IndexArray
    weight: FloatArray
    """Weight of `high`; `low` has 1 - weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Some rows of the matrix of an axis, and their columns that are not near 0; ranges are half-open."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    weights: npt.NDArray[np.float32]  # (rows, columns)


@lru_cache(maxsize=32)
def axis_operator(old: int, new: int, order: int) -> FloatArray:
    """Return the read-only (new, old) float64 matrix that resizes an axis by a spline of `order` (0 to 5)."""
    if old == new:
        operator = np.eye(old)
    else:
        zoom: Any = scipy.ndimage.zoom  # its type hints are stricter than the numpy versions that we support
        operator = zoom(np.eye(old), (new / old, 1.0), order=order, mode="nearest", grid_mode=True)
    assert operator.shape == (new, old), f"zoom gave {operator.shape} for {(new, old)}"
    operator.flags.writeable = False
    return operator


@lru_cache(maxsize=256)
def nearest_indices(old: int, new: int) -> IndexArray:
    """Return the index of the nearest of `old` samples for each of `new` ones (half-pixel centres, ties upwards)."""
    positions = old / new * (np.arange(new) + 0.5) - 0.5
    indices: IndexArray = np.clip(np.floor(positions + 0.5), 0, old - 1).astype(np.intp)
    indices.flags.writeable = False
    return indices


@lru_cache(maxsize=256)
def torch_nearest_indices(old: int, new: int) -> IndexArray:
    """Return the indices of torch's `nearest-exact`, which rounds positions in float32."""
    scale = float(np.float32(old) / np.float32(new))
    positions = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)  # torch multiplies and adds in one step
    nearest = np.floor(np.maximum(positions, np.float32(0)) + np.float32(0.5))
    indices: IndexArray = np.minimum(nearest.astype(np.intp), old - 1)
    indices.flags.writeable = False
    return indices


@lru_cache(maxsize=256)
def linear_samples(old: int, new: int) -> LinearSamples:
    """Return the neighbours and weights of a linear resize, in scipy's order of operations: ties depend on it."""
    positions = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(positions).astype(np.intp)
    return LinearSamples(low=low, high=np.minimum(low + 1, old - 1), weight=positions - low)


def needed_inputs(old: int, new: int, order: int, rows: tuple[int, int]) -> tuple[int, int]:
    """Return the half-open range of input samples that the output samples `rows` of an axis depend on."""
    if order <= 1:
        samples = linear_samples(old, new)
        return int(samples.low[rows[0]]), int(samples.high[rows[1] - 1]) + 1
    needed = [band for band in bands(old, new, order) if band.rows[1] > rows[0] and band.rows[0] < rows[1]]
    return min(band.columns[0] for band in needed), max(band.columns[1] for band in needed)


@lru_cache(maxsize=64)
def bands(old: int, new: int, order: int) -> tuple[Band, ...]:
    """Return the matrix of an axis for an `order` of 2 or more, in bands of rows."""
    operator = axis_operator(old, new, order)
    found = []
    for start in range(0, new, _BAND_ROWS):
        rows = operator[start : start + _BAND_ROWS]
        (used,) = np.nonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        weights = rows[:, low:high].astype(np.float32)
        found.append(Band(rows=(start, start + len(rows)), columns=(low, high), weights=weights))
    return tuple(found)
