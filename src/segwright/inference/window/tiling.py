"""Positions of the tiles of a sliding window, and the Gaussian weight of their voxels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import ceil
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ConfigError

T = TypeVar("T")

DEFAULT_STEP = 0.5
"""Distance of two tiles as a fraction of the patch (nnU-Net behaviour 11.2)."""

GAUSSIAN_PEAK = 10.0
GAUSSIAN_SIGMAS_PER_PATCH = 8.0
HALF_QUANTUM = 2.0**-24
"""Smallest positive float16, and the spacing of the smallest ones: the resolution of nnU-Net's float16 sums."""

Start = tuple[int, ...]
"""First voxel of a tile per spatial axis."""


def axis_starts(size: int, patch: int, step: float = DEFAULT_STEP) -> tuple[int, ...]:
    """Return the tile starts of one axis: as few tiles as `step` allows, spread evenly (nnU-Net behaviour 11.2).

    >>> axis_starts(110, 64)
    (0, 23, 46)

    Raises:
        ConfigError: `step` is not in (0, 1].
    """
    require_step(step)
    assert size >= patch, "the image is padded to the patch size first"
    target = patch * step
    num = ceil((size - patch) / target) + 1
    stride = (size - patch) / (num - 1) if num > 1 else 0.0
    return tuple(int(np.round(stride * index)) for index in range(num))


def require_step(step: float) -> None:
    """Check the distance of two tiles as a fraction of the patch.

    Raises:
        ConfigError: it is not above 0 and at most 1.
    """
    if not 0 < step <= 1:
        raise ConfigError(f"tile step {step} is outside (0, 1]; it is a fraction of the patch, 0.5 by default")


def tile_starts(
    image_size: Sequence[int], patch_size: Sequence[int], step: float = DEFAULT_STEP
) -> tuple[tuple[int, ...], ...]:
    """Return the tile starts of every axis of `image_size`.

    A patch with one axis fewer than the image is 2D: it runs over every slice of axis 0.
    """
    assert len(image_size) - len(patch_size) in (0, 1), "the patch has the image's axes, or all but the first"
    slices = (tuple(range(image_size[0])),) if len(patch_size) < len(image_size) else ()
    tiled = image_size[len(slices) :]
    return slices + tuple(axis_starts(size, patch, step) for size, patch in zip(tiled, patch_size, strict=True))


def tiles(image_size: Sequence[int], patch_size: Sequence[int], step: float = DEFAULT_STEP) -> list[Start]:
    """Return the first voxel of every tile, ascending along axis 0, as the rolling sums of `stitching` need it."""
    return list(product(*tile_starts(image_size, patch_size, step)))


def rolling_axis(image_size: Sequence[int], patch_size: Sequence[int]) -> int:
    """Return the axis along which the sums need the least memory: the one with the most patches, the first of equals.

    >>> rolling_axis((267, 267, 533), (128, 128, 128))
    2
    """
    if len(patch_size) < len(image_size):
        return 0
    shares = [patch / max(size, patch) for size, patch in zip(image_size, patch_size, strict=True)]
    return shares.index(min(shares))


def to_front(values: Sequence[T], axis: int) -> tuple[T, ...]:
    """Return one value per axis with that of `axis` first.

    >>> to_front("zyx", 2)
    ('x', 'z', 'y')
    """
    return (values[axis], *values[:axis], *values[axis + 1 :])


@lru_cache(maxsize=4)
def gaussian_map(patch_size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the weight of every voxel of a tile: a Gaussian with its peak of 10 at `patch // 2`, sigma patch / 8.

    Rounded to float16 as nnU-Net's map (nnU-Net behaviour 11.3): at the edges of a tile, where the numbers have one or
    two digits, the share of each tile would else be another one. The array is read-only.
    """
    weights = np.ones((), dtype=np.float64)
    for size in patch_size:
        sigmas = (np.arange(size) - size // 2) / (size / GAUSSIAN_SIGMAS_PER_PATCH)
        weights = weights[..., None] * np.exp(-0.5 * sigmas**2)
    rounded = (weights * GAUSSIAN_PEAK).astype(np.float16).astype(np.float32)
    result: npt.NDArray[np.float32] = np.maximum(rounded, rounded[rounded > 0].min())
    result.setflags(write=False)
    return result
