"""Rotation, scaling and mirroring; the affine is drawn first, so that only the voxels it needs are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from segwright.augmentation.resampling import Matrix
from segwright.augmentation.transform import Params, Range, Samples
from segwright.data.labels import OUTSIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """Random rotation and scaling; a factor above 1 shows more of the case, so objects get smaller.

    Defaults are nnU-Net's (nnU-Net behaviour 10.1, 10.2). `rotation` is in radians; with `in_plane` (3D patches of
    thick slices) only the last two axes are rotated and scaled. In a rotated sample each angle is kept with
    `axis_probability`, otherwise it is 0.
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
        num_axes = dims - 1 if self.in_plane else dims
        factor = rng.uniform(*self.scaling, size=num_axes if self.scaling_per_axis else None) if scaled else 1.0
        if self.axis_probability < 1:
            angles *= rng.random(3) < self.axis_probability
        if not (rotated or scaled):
            return None
        matrix = np.eye(dims)
        block = rotation_matrix(angles if num_axes == 3 else angles[-1:]) if rotated else np.eye(num_axes)
        matrix[dims - num_axes :, dims - num_axes :] = block * factor
        return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Flip images and labels along each allowed spatial axis with the same probability.

    A flip along one of `lateral_axes` (left-right) maps label v to `swapped_labels[v]`.
    """

    axes: tuple[int, ...]
    probability: float = 0.5
    lateral_axes: tuple[int, ...] = ()
    swapped_labels: tuple[int, ...] = ()

    @property
    def swaps_sides(self) -> bool:
        """Whether some flips swap left and right labels."""
        return bool(self.swapped_labels and set(self.axes) & set(self.lateral_axes))

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `flips` (axes of S,), true where the sample is flipped."""
        flips = np.zeros(len(shape) - 1, dtype=bool)
        flips[list(self.axes)] = rng.random(len(self.axes)) < self.probability
        return {"flips": flips} if flips.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the flipped samples."""
        axes = [[1 + int(axis) for axis in np.flatnonzero(draw["flips"])] for draw in draws]
        if len(draws) == 1:
            flips = [axis + 1 for axis in axes[0]]
            labels = self._swap_labels(samples.labels.flip(flips), axes[0])
            return Samples(images=samples.images.flip(flips), labels=labels)
        flipped = (label.flip(flips) for label, flips in zip(samples.labels, axes, strict=True))
        return Samples(
            images=torch.stack([image.flip(flips) for image, flips in zip(samples.images, axes, strict=True)]),
            labels=torch.stack([self._swap_labels(label, flips) for label, flips in zip(flipped, axes, strict=True)]),
        )

    def _swap_labels(self, labels: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """Return flipped labels with left and right swapped where needed; `axes` are those of (L, *S)."""
        if not self.swaps_sides or sum(axis - 1 in self.lateral_axes for axis in axes) % 2 == 0:
            return labels
        table = torch.tensor((*self.swapped_labels, OUTSIDE), dtype=labels.dtype)  # index -1 is its end
        return table.to(labels.device, non_blocking=True)[labels.int()]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOutside:
    """Set image channels that were normalised inside the nonzero mask to 0 outside it (first label map below 0)."""

    channels: tuple[int, ...]

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return no parameters: every sample is masked."""
        return {}

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the samples with the channels masked."""
        images = samples.images.clone()
        outside = samples.labels[:, 0] < 0
        for channel in self.channels:
            images[:, channel].masked_fill_(outside, 0.0)
        return replace(samples, images=images)


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
