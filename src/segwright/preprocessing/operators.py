"""Spline zoom as one small matrix per axis.

Zooming with B-splines is linear and separable, so resizing a volume is one matrix product per axis. The matrix of an
axis is computed once by zooming the identity with `scipy.ndimage.zoom` (grid mode, edges repeated), which equals what
nnU-Net 2.8.1 computes voxel by voxel through scikit-image (nnU-Net behaviour 6.4.2). Its rows are near 0 beyond a few
voxels, so it is applied in bands of rows: far fewer multiplications, and a slab of output planes needs few input
planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import torch
from torch.nn import functional

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
class _Band:
    rows: tuple[int, int]
    columns: tuple[int, int]
    weights: torch.Tensor  # (rows, columns) float32


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
    samples = torch.arange(old, dtype=torch.float32)[None, None]
    indices = functional.interpolate(samples, size=new, mode="nearest-exact")[0, 0].numpy().astype(np.intp)
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
    bands = [band for band in _bands(old, new, order) if band.rows[1] > rows[0] and band.rows[0] < rows[1]]
    return min(band.columns[0] for band in bands), max(band.columns[1] for band in bands)


def apply_spline(
    volume: torch.Tensor,
    axis: int,
    old: int,
    new: int,
    *,
    order: int,
    rows: tuple[int, int] | None = None,
    first: int = 0,
) -> torch.Tensor:
    """Resize `axis` of a float32 volume (C, *S) by a spline of `order` >= 2.

    Args:
        volume: the input; along `axis` it may be cut to the range of `needed_inputs`.
        axis: which axis.
        old: full extent of the axis.
        new: new extent.
        order: spline order.
        rows: half-open range of output samples to compute; all by default.
        first: the input sample at which the cut volume starts.
    """
    start, stop = rows or (0, new)
    lead = int(np.prod(volume.shape[:axis]))
    columns = volume.reshape(lead, volume.shape[axis], -1)  # (lead, old, trail)
    result = columns.new_empty((lead, stop - start, columns.shape[2]))
    for band in _bands(old, new, order):
        low, high = max(band.rows[0], start), min(band.rows[1], stop)
        if low >= high:
            continue
        weights = band.weights[low - band.rows[0] : high - band.rows[0]].to(columns.device)
        inputs = columns[:, band.columns[0] - first : band.columns[1] - first]
        if columns.shape[2] == 1:
            result[:, low - start : high - start, 0] = inputs[:, :, 0] @ weights.T
        else:
            result[:, low - start : high - start] = torch.bmm(weights.expand(lead, -1, -1), inputs)
    return result.reshape(*volume.shape[:axis], stop - start, *volume.shape[axis + 1 :])


def apply_linear_planes(
    volume: torch.Tensor, old: int, new: int, *, rows: tuple[int, int] | None = None, first: int = 0
) -> torch.Tensor:
    """Resize axis 1 of a volume (C, D, H, W) linearly; `rows` and `first` as for `apply_spline`."""
    start, stop = rows or (0, new)
    samples = linear_samples(old, new)
    result = volume.new_empty((volume.shape[0], stop - start, *volume.shape[2:]))
    for plane in range(start, stop):
        low, high = volume[:, samples.low[plane] - first], volume[:, samples.high[plane] - first]
        torch.lerp(low, high, float(samples.weight[plane]), out=result[:, plane - start])
    return result


def apply_linear_in_plane(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Resize the last two axes of a volume (C, D, H, W) linearly, plane by plane."""
    return functional.interpolate(volume, size=tuple(shape), mode="bilinear", align_corners=False)


def apply_gather(volume: torch.Tensor, axis: int, indices: npt.NDArray[Any]) -> torch.Tensor:
    """Pick samples along one axis."""
    return volume.index_select(axis, torch.tensor(indices, dtype=torch.long, device=volume.device))


@lru_cache(maxsize=64)
def _bands(old: int, new: int, order: int) -> tuple[_Band, ...]:
    operator = axis_operator(old, new, order)
    bands = []
    for start in range(0, new, _BAND_ROWS):
        rows = operator[start : start + _BAND_ROWS]
        (used,) = np.nonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        weights = torch.tensor(rows[:, low:high], dtype=torch.float32)
        bands.append(_Band(rows=(start, start + len(rows)), columns=(low, high), weights=weights))
    return tuple(bands)
