"""Linear filters along one axis as small matrices: blur and low-resolution simulation are products with them.

A separable linear filter on an axis of n voxels is an (n, n) matrix that includes the border rule. For axes of patch
size a matrix product is faster than a convolution with padding, and each volume of a batch can have its own filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

Operator = npt.NDArray[np.float32]


def along_axes(volumes: torch.Tensor, operators: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Multiply each spatial axis of `volumes` (M, *S) by its operator (M, size, size); None skips an axis."""
    for axis, operator in enumerate(operators):
        if operator is None:
            continue
        shape = volumes.shape
        before = int(np.prod(shape[1 : 1 + axis]))
        after = int(np.prod(shape[2 + axis :]))
        count, size = shape[0], shape[1 + axis]
        if after == 1:
            flat = volumes.reshape(count, before, size)
            volumes = torch.bmm(flat, operator.transpose(1, 2)).reshape(shape)
        else:
            flat = volumes.reshape(count, before, size, after)
            volumes = torch.matmul(operator[:, None], flat).reshape(shape)
    return volumes


@lru_cache(maxsize=512)
def low_resolution_operator(size: int, reduced: int) -> Operator:
    """Return the (size, size) operator that samples `reduced` nearest voxels and interpolates back linearly.

    nnU-Net behaviour 10.3: down by `nearest-exact`, up linearly without aligned corners.
    """
    # float32 as in torch's own rule, so that ties at voxel borders fall on the same side
    middle = np.arange(reduced, dtype=np.float32) + np.float32(0.5)
    kept = np.minimum(np.floor(middle * np.float32(size / reduced)), size - 1).astype(int)
    position = np.maximum((np.arange(size) + 0.5) * (reduced / size) - 0.5, 0.0)
    low = np.minimum(np.floor(position).astype(int), reduced - 1)
    high = np.minimum(low + 1, reduced - 1)
    weight = position - low
    operator = np.zeros((size, size), dtype=np.float32)
    rows = np.arange(size)
    np.add.at(operator, (rows, kept[low]), 1.0 - weight)
    np.add.at(operator, (rows, kept[high]), weight)
    operator.setflags(write=False)
    return operator


def gaussian_operator(size: int, sigma: float) -> Operator:
    """Return the (size, size) operator of a Gaussian blur of `sigma` voxels, borders reflected."""
    if sigma <= 0:
        return np.eye(size, dtype=np.float32)
    half = gaussian_taps(sigma) // 2
    offsets = np.arange(-half, half + 1)
    taps = np.exp(-(offsets**2) / (2.0 * sigma**2))
    taps /= taps.sum()
    sources = _reflect(np.arange(size)[:, None] + offsets[None, :], size)
    operator = np.zeros((size, size), dtype=np.float32)
    np.add.at(operator, (np.arange(size)[:, None], sources), taps[None, :])
    return operator


def gaussian_taps(sigma: float) -> int:
    """Return the kernel length: the odd integer nearest to 6 sigma + 0.5 (nnU-Net behaviour 10.3)."""
    length = 6.0 * sigma + 0.5
    nearest = round(length)
    if nearest % 2 == 0:
        nearest += 1 if length >= nearest else -1
    return max(nearest, 1)


def _reflect(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Fold indices outside [0, size) back, the border voxel not repeated."""
    if size == 1:
        return np.zeros_like(index)
    period = 2 * (size - 1)
    folded = np.abs(index) % period
    mirrored: npt.NDArray[np.int64] = np.minimum(folded, period - folded)
    return mirrored
