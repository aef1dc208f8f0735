"""U-Net topology: strides and kernels of each stage, from spacing and patch (nnU-Net behaviour 5.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segwright.planning.presets import ANISOTROPY_PER_STAGE, MIN_EDGE

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Strides and kernel sizes of a U-Net for a patch.

    Attributes:
        strides: Stride per stage and axis; all 1 in stage 0.
        kernel_sizes: Kernel size per stage and axis.
        divisor: Product of the strides per axis.
        patch_size: The patch, rounded up to multiples of `divisor`.
    """

    strides: tuple[Sizes, ...]
    kernel_sizes: tuple[Sizes, ...]
    divisor: Sizes
    patch_size: Sizes

    @property
    def num_stages(self) -> int:
        """Number of resolutions."""
        return len(self.strides)


def derive_topology(
    spacing: Sequence[float], patch_size: Sequence[float], *, max_stages: int | None = None, kernel_size: int = 3
) -> Topology:
    """Derive the topology for a patch: halve axes while they are long enough and of similar spacing.

    nnU-Net behaviour 5.6. An axis is pooled while it keeps at least `MIN_EDGE` voxels, and only together
    with axes whose current spacing is within a factor of two of the finest that can still be pooled. A kernel entry
    becomes 3 once the axis' spacing is within that factor of the finest of all axes, and stays 3.

    Args:
        spacing: Voxel size per axis (2 or 3).
        patch_size: Wanted patch in voxels; may hold halves (a median of sizes).
        max_stages: Maximum number of resolutions.
        kernel_size: Kernel entry instead of 3.
    """
    current, sizes = list(spacing), [float(size) for size in patch_size]
    dims = len(sizes)
    pooled, kernel = [0] * dims, [1] * dims
    strides, kernels = [(1,) * dims], []
    while (max_stages is None or len(strides) < max_stages) and (axes := _poolable(current, sizes)):
        finest = min(current)
        is_comparable = [size / finest < ANISOTROPY_PER_STAGE for size in current]
        kernel = [kernel_size if is_comparable[axis] else kernel[axis] for axis in range(dims)]
        for axis in axes:
            pooled[axis] += 1
            current[axis] *= 2
            sizes[axis] = math.ceil(sizes[axis] / 2)
        strides.append(tuple(2 if axis in axes else 1 for axis in range(dims)))
        kernels.append(tuple(kernel))
    kernels.append((kernel_size,) * dims)
    divisor = tuple(2**count for count in pooled)
    return Topology(
        strides=tuple(strides),
        kernel_sizes=tuple(kernels),
        divisor=divisor,
        patch_size=tuple(math.ceil(size / factor) * factor for size, factor in zip(patch_size, divisor, strict=True)),
    )


def _poolable(spacing: Sequence[float], sizes: Sequence[float]) -> tuple[int, ...]:
    """Return the axes to halve next; empty at the end of pooling."""
    long_enough = [axis for axis, size in enumerate(sizes) if size >= 2 * MIN_EDGE]
    if not long_enough:
        return ()
    finest = min(spacing[axis] for axis in long_enough)
    axes = tuple(axis for axis in long_enough if spacing[axis] / finest < ANISOTROPY_PER_STAGE)
    # A single remaining axis is pooled only while it is long, since halving it alone adds little context.
    return () if len(axes) == 1 and sizes[axes[0]] < 3 * MIN_EDGE else axes
