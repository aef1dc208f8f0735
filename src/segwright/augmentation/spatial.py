"""Rotation, scaling and mirroring: the matrix is drawn first, so only the voxels it needs are ever read.

An affine maps centred patch coordinates (voxels, 0 at the patch's centre) to centred coordinates of the case: a
patch voxel v shows the case at `centre + matrix @ v`. Labels are resampled as one integer map, whatever their number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from segwright.augmentation.transform import Draw, Range, Samples
from segwright.core.arrays import Box

Matrix = npt.NDArray[np.float64]

SLAB_VOXELS = 1 << 16
"""Voxels resampled at once on the CPU: the intermediate arrays stay in the second-level cache."""

READING_MARGIN = 1e-3
"""Voxels added around a reading box, so that rounding in float32 never asks for a voxel that was not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """Random rotation and isotropic scaling; a larger factor shows more of the case, so objects get smaller.

    Defaults are those of nnU-Net 2.8.1 (spec B 3.1, 3.2). `rotation` is in radians; with `in_plane` (3D patches of
    thick slices) only the last two axes are rotated and scaled. Each angle is kept with `axis_probability`.
    """

    rotation: Range
    rotation_probability: float = 0.2
    scaling: Range = (0.7, 1.4)
    scaling_probability: float = 0.2
    in_plane: bool = False
    axis_probability: float = 1.0
    scaling_per_axis: bool = False

    def draw(self, rng: np.random.Generator, dims: int) -> Matrix | None:
        """Return a (dims, dims) matrix, or None for a plain crop."""
        rotated = rng.random() < self.rotation_probability
        scaled = rng.random() < self.scaling_probability
        angles = rng.uniform(*self.rotation, size=3)
        turning = dims - 1 if self.in_plane else dims
        factor = rng.uniform(*self.scaling, size=turning if self.scaling_per_axis else None) if scaled else 1.0
        if self.axis_probability < 1:
            angles *= rng.random(3) < self.axis_probability
        if not (rotated or scaled):
            return None
        matrix = np.eye(dims)
        block = rotation_matrix(angles if turning == 3 else angles[-1:]) if rotated else np.eye(turning)
        matrix[dims - turning :, dims - turning :] = block * factor
        return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Flip images and labels along each allowed spatial axis with the same probability."""

    axes: tuple[int, ...]
    probability: float = 0.5

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Draw | None:
        """Return `flips` (axes of S,), true where the sample is flipped."""
        flips = np.zeros(len(shape) - 1, dtype=bool)
        flips[list(self.axes)] = rng.random(len(self.axes)) < self.probability
        return {"flips": flips} if flips.any() else None

    def apply(self, samples: Samples, draws: Sequence[Draw]) -> Samples:
        """Return the flipped samples."""
        images, labels = torch.empty_like(samples.images), torch.empty_like(samples.labels)
        for index, draw in enumerate(draws):
            axes = [1 + int(axis) for axis in np.flatnonzero(draw["flips"])]
            images[index] = samples.images[index].flip(axes)
            labels[index] = samples.labels[index].flip(axes)
        return Samples(images=images, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOutside:
    """Set image channels that were normalised inside the nonzero mask to 0 outside it (first label map below 0)."""

    channels: tuple[int, ...]

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Draw | None:
        """Return no parameters: every sample is masked."""
        return {}

    def apply(self, samples: Samples, draws: Sequence[Draw]) -> Samples:
        """Return the samples with the channels masked."""
        images = samples.images.clone()
        outside = samples.labels[:, 0] < 0
        for channel in self.channels:
            images[:, channel].masked_fill_(outside, 0.0)
        return replace(samples, images=images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The part of a case that one transformed patch needs.

    Attributes:
        images: (C, *M) float32, 0 where the case ended.
        labels: (L, *M) int16, -1 where the case ended.
        centre: where the patch's centre lies in this part, in voxels.
        matrix: the affine.
    """

    images: torch.Tensor
    labels: torch.Tensor
    centre: tuple[float, ...]
    matrix: Matrix


def rotation_matrix(angles: npt.NDArray[np.float64]) -> Matrix:
    """Return Rz Ry Rx for three angles (radians, about axes 0, 1, 2), or the plane's rotation for one."""
    if len(angles) == 1:
        cos, sin = math.cos(angles[0]), math.sin(angles[0])
        return np.array([[cos, -sin], [sin, cos]])
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    product: Matrix = about_z @ about_y @ about_x
    return product


def patch_centre(start: Sequence[int], patch_size: Sequence[int]) -> tuple[float, ...]:
    """Return the centre (voxels of the case) of the patch that begins at `start`."""
    return tuple(low + (size - 1) / 2 for low, size in zip(start, patch_size, strict=True))


def source_box(matrix: Matrix, centre: Sequence[float], patch_size: Sequence[int]) -> Box:
    """Return the box of the case with every voxel that linear interpolation of the transformed patch touches."""
    reach = np.abs(matrix) @ ((np.asarray(patch_size) - 1) / 2) + READING_MARGIN
    low, high = np.floor(centre - reach), np.floor(centre + reach)
    return tuple((int(first), int(last) + 2) for first, last in zip(low, high, strict=True))


def resample(sources: Sequence[Source], patch_size: Sequence[int]) -> Samples:
    """Return the patches (n, C, *patch_size) and (n, L, *patch_size) that the sources' affines show.

    Images are interpolated linearly. Each label voxel gets the label with the largest linear weight among its
    neighbours, the smallest label on a tie: the argmax of linearly interpolated one-hot maps, padding (-1) included.
    """
    first = sources[0]
    device = first.images.device
    channels, maps = first.images.shape[0], first.labels.shape[0]
    values = torch.cat([source.images.flatten(1) for source in sources], dim=1)  # (C, all source voxels)
    classes = torch.cat([source.labels.flatten(1) for source in sources], dim=1)  # (L, all source voxels)
    table = _SourceTable.of(sources, device)
    images = torch.empty((len(sources), channels, *patch_size), device=device)
    labels = torch.empty((len(sources), maps, *patch_size), dtype=classes.dtype, device=device)
    rows = patch_size[0]
    if device.type == "cpu":
        rows = max(1, SLAB_VOXELS // (len(sources) * math.prod(patch_size[1:])))
    for begin in range(0, patch_size[0], rows):
        slab = slice(begin, min(begin + rows, patch_size[0]))
        corners, fractions = table.corners(patch_size, slab)
        for channel in range(channels):
            images[:, channel, slab] = _interpolate(values[channel], corners, fractions)
        for index in range(maps):
            labels[:, index, slab] = _vote(classes[index], corners, fractions)
    return Samples(images=images, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SourceTable:
    """Matrices, centres and memory layout of n sources laid one after the other, as tensors on their device."""

    matrices: torch.Tensor  # (n, axes, axes)
    centres: torch.Tensor  # (n, axes)
    limits: torch.Tensor  # (n, axes) last voxel that has a right-hand neighbour
    strides: torch.Tensor  # (n, axes)
    offsets: torch.Tensor  # (n,) first voxel of each source

    @classmethod
    def of(cls, sources: Sequence[Source], device: torch.device) -> _SourceTable:
        shapes = np.array([source.images.shape[1:] for source in sources])
        strides = np.concatenate([np.cumprod(shapes[:, :0:-1], axis=1)[:, ::-1], np.ones_like(shapes[:, :1])], axis=1)
        offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]])
        matrices = np.stack([source.matrix for source in sources]).astype(np.float32)
        centres = np.array([source.centre for source in sources], dtype=np.float32)
        return cls(
            matrices=torch.from_numpy(matrices).to(device),
            centres=torch.from_numpy(centres).to(device),
            limits=torch.from_numpy((shapes - 2).astype(np.float32)).to(device),
            strides=torch.from_numpy(strides.astype(np.int64)).to(device),
            offsets=torch.from_numpy(offsets.astype(np.int64)).to(device),
        )

    def corners(self, patch_size: Sequence[int], slab: slice) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the flat indices of the 2^axes neighbours and the fraction per axis, each (n, *slab of the patch)."""
        dims = len(patch_size)
        spread = (-1, *(1,) * dims)
        grid = [torch.arange(size, device=self.centres.device) - (size - 1) / 2 for size in patch_size]
        grid[0] = grid[0][slab]
        base: torch.Tensor | None = None
        fractions = []
        for axis in range(dims):
            position = self.centres[:, axis].view(spread)
            for other in range(dims):
                step = self.matrices[:, axis, other].view(spread)
                position = position + step * grid[other].view(-1, *(1,) * (dims - 1 - other))
            low = position.floor().clamp_min_(0).minimum(self.limits[:, axis].view(spread))
            fractions.append(position.sub_(low))
            index = low.to(torch.int64).mul_(self.strides[:, axis].view(spread))
            base = index.add_(self.offsets.view(spread)) if base is None else base.add_(index)
        assert base is not None
        corners = [base]
        for axis in range(dims):  # the last axis varies fastest, as in itertools.product
            step = self.strides[:, axis].view(spread)
            corners = [corner for low in corners for corner in (low, low + step)]
        return corners, fractions


def _interpolate(values: torch.Tensor, corners: list[torch.Tensor], fractions: list[torch.Tensor]) -> torch.Tensor:
    """Interpolate `values` (voxels,) linearly between the corners."""
    return _blend([values.index_select(0, corner.flatten()).view(corner.shape) for corner in corners], fractions)


def _blend(level: list[torch.Tensor], fractions: list[torch.Tensor]) -> torch.Tensor:
    """Reduce the values at the corners to one, axis by axis."""
    for fraction in reversed(fractions):
        level = [torch.lerp(low, high, fraction) for low, high in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _vote(classes: torch.Tensor, corners: list[torch.Tensor], fractions: list[torch.Tensor]) -> torch.Tensor:
    """Return the label with the largest total weight among the corners."""
    around = [classes.index_select(0, corner.flatten()) for corner in corners]
    flat = [fraction.flatten() for fraction in fractions]
    if classes.device.type != "cpu":  # finding the mixed voxels would make the host wait
        return _heaviest(torch.stack(around), flat).view(corners[0].shape)
    low, high = functools.reduce(torch.minimum, around), functools.reduce(torch.maximum, around)
    (mixed,) = torch.nonzero(low != high, as_tuple=True)
    if len(mixed):
        few = [label.index_select(0, mixed) for label in around]
        part = [fraction.index_select(0, mixed) for fraction in flat]
        low.index_copy_(0, mixed, _winner(few, low.index_select(0, mixed), high.index_select(0, mixed), part))
    return low.view(corners[0].shape)


def _winner(
    around: list[torch.Tensor], low: torch.Tensor, high: torch.Tensor, fractions: list[torch.Tensor]
) -> torch.Tensor:
    """Return `_heaviest` by a shorter way where only the labels `low` and `high` meet, which is nearly everywhere."""
    upper = [label == high for label in around]
    share = _blend([side.to(torch.float32) for side in upper], fractions)
    winner = torch.where(share > 0.5, high, low)
    third = functools.reduce(
        torch.bitwise_or, [~(label == low) & ~side for label, side in zip(around, upper, strict=True)]
    )
    (crowded,) = torch.nonzero(third, as_tuple=True)
    if len(crowded):
        few = torch.stack([label.index_select(0, crowded) for label in around])
        winner.index_copy_(0, crowded, _heaviest(few, [fraction.index_select(0, crowded) for fraction in fractions]))
    return winner


def _heaviest(around: torch.Tensor, fractions: list[torch.Tensor]) -> torch.Tensor:
    """Return, per column of `around` (corners, voxels), the label with the largest sum of linear weights."""
    parts = [torch.ones_like(fractions[0])]
    for fraction in fractions:  # the last axis varies fastest, as in the corners
        parts = [part for low in parts for part in (low * (1 - fraction), low * fraction)]
    weights = torch.stack(parts)  # (corners, voxels)
    nothing = torch.zeros((), device=weights.device)
    totals = torch.stack([torch.where(around == label, weights, nothing).sum(0) for label in around])
    largest = torch.iinfo(around.dtype).max
    return torch.where(totals >= totals.amax(0), around, largest).amin(0)
