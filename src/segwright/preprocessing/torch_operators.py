"""Apply the positions and weights of `operators` to tensors; see `resampling.ArrayOperators`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segwright.preprocessing.operators import IndexArray, bands, linear_samples


@torch.no_grad()
def spline(
    volume: Tensor, axis: int, old: int, new: int, *, order: int, rows: tuple[int, int] | None = None, first: int = 0
) -> Tensor:
    """Resize `axis` of a float32 volume (C, *S) by a spline of `order` >= 2."""
    start, stop = rows or (0, new)
    lead = int(np.prod(volume.shape[:axis]))
    columns = volume.reshape(lead, volume.shape[axis], -1)  # (lead, old, trail)
    result = columns.new_empty((lead, stop - start, columns.shape[2]))
    for band, of_band in zip(bands(old, new, order), _weights(old, new, order), strict=True):
        low, high = max(band.rows[0], start), min(band.rows[1], stop)
        if low >= high:
            continue
        weights = of_band[low - band.rows[0] : high - band.rows[0]].to(columns.device)
        inputs = columns[:, band.columns[0] - first : band.columns[1] - first]
        if columns.shape[2] == 1:
            result[:, low - start : high - start, 0] = inputs[:, :, 0] @ weights.T
        else:
            result[:, low - start : high - start] = torch.bmm(weights.expand(lead, -1, -1), inputs)
    return result.reshape(*volume.shape[:axis], stop - start, *volume.shape[axis + 1 :])


@torch.no_grad()
def linear_planes(volume: Tensor, old: int, new: int, *, rows: tuple[int, int] | None = None, first: int = 0) -> Tensor:
    """Resize axis 1 of a volume (C, D, H, W) linearly."""
    start, stop = rows or (0, new)
    samples = linear_samples(old, new)
    result = volume.new_empty((volume.shape[0], stop - start, *volume.shape[2:]))
    for plane in range(start, stop):
        low, high = volume[:, samples.low[plane] - first], volume[:, samples.high[plane] - first]
        torch.lerp(low, high, float(samples.weight[plane]), out=result[:, plane - start])
    return result


@torch.no_grad()
def linear_in_plane(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Resize the last two axes of a volume (C, D, H, W) linearly, plane by plane."""
    return functional.interpolate(volume, size=tuple(shape), mode="bilinear", align_corners=False)


@torch.no_grad()
def gather(volume: Tensor, axis: int, indices: IndexArray) -> Tensor:
    """Pick samples along one axis."""
    return volume.index_select(axis, torch.tensor(indices, dtype=torch.long, device=volume.device))


@torch.no_grad()
def clip_inplace(volume: Tensor, source: Tensor, axes: Sequence[int]) -> Tensor:
    """Clip a volume (C, *S) to the range of `source` over `axes`."""
    low, high = source.amin([*axes], keepdim=True), source.amax([*axes], keepdim=True)
    return volume.clamp_(low.float(), high.float())


def to_float32(volume: Tensor) -> Tensor:
    """Return the volume in float32."""
    return volume.float()


def concatenate(volumes: Sequence[Tensor], axis: int) -> Tensor:
    """Join volumes along an axis."""
    return torch.cat([*volumes], dim=axis)


@lru_cache(maxsize=64)
def _weights(old: int, new: int, order: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(band.weights) for band in bands(old, new, order))
