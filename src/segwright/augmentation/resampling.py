"""Resample a patch by an affine: linear interpolation of images, weighted majority vote for labels.

An affine maps patch coordinates (voxels, 0 at the patch's centre) to the case: patch voxel v is read at
`centre + matrix @ v`. Labels are resampled as one integer map, so that the cost does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from segwright.augmentation.transform import Samples
from segwright.core.boxes import Box
from segwright.core.device import CPU

Matrix = npt.NDArray[np.float64]

SLAB_VOXELS = 96 * 1024
"""Voxels resampled at once on the CPU: the intermediate arrays nearly fit the second-level cache."""

READING_MARGIN = 1e-3
"""Margin (voxels) of the box that is read, so that float32 rounding never needs a voxel outside it."""

_MIXED = torch.iinfo(torch.int16).min
"""Marks a voxel whose neighbours have different labels; not a valid label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The voxels from which one transformed patch is resampled: the box of `source_box`, or a whole case.

    Attributes:
        images: (C, *M) float32, contiguous, 0 outside the case.
        labels: (L, *M) int16, contiguous, -1 outside the case.
        centre: position of the patch's centre in the box, in voxels.
        matrix: the affine.
        box: of `source_box`, in a whole case; None if the arrays are that box.
    """

    images: torch.Tensor
    labels: torch.Tensor
    centre: tuple[float, ...]
    matrix: Matrix
    box: Box | None = None


def patch_centre(start: Sequence[int], patch_size: Sequence[int]) -> tuple[float, ...]:
    """Return the centre (voxels of the case) of the patch that begins at `start`."""
    return tuple(low + (size - 1) / 2 for low, size in zip(start, patch_size, strict=True))


def source_box(matrix: Matrix, centre: Sequence[float], patch_size: Sequence[int]) -> Box:
    """Return the box of the case that linear interpolation of the transformed patch reads."""
    reach = np.abs(matrix) @ ((np.asarray(patch_size) - 1) / 2) + READING_MARGIN
    low, high = np.floor(centre - reach), np.floor(centre + reach)
    return tuple((int(first), int(last) + 2) for first, last in zip(low, high, strict=True))


def resample(source: Source, patch_size: Sequence[int]) -> Samples:
    """Resample the source to a patch: images (1, C, *patch_size) and labels (1, L, *patch_size).

    Images are interpolated linearly. Each label voxel gets the label with the largest linear weight among its
    neighbours, the smallest label on a tie: the argmax of linearly interpolated one-hot maps, padding (-1) included.
    """
    device = source.images.device
    images = torch.empty((len(source.images), *patch_size), device=device)
    labels = torch.empty((len(source.labels), *patch_size), dtype=source.labels.dtype, device=device)
    grid = [torch.arange(size, device=device) - (size - 1) / 2 for size in patch_size]
    rows = patch_size[0] if device.type != CPU else max(1, SLAB_VOXELS // math.prod(patch_size[1:]))
    uniform: list[npt.NDArray[np.int16]] = []
    for begin in range(0, patch_size[0], rows):
        slab = slice(begin, min(begin + rows, patch_size[0]))
        points = SamplingGrid.from_affine(source, [grid[0][slab], *grid[1:]])
        for channel, image in enumerate(source.images):
            images[channel, slab] = points.interpolate(image)
        if device.type == CPU:
            uniform = uniform or [points.uniform_labels(classes) for classes in source.labels]
        for index, classes in enumerate(source.labels):
            labels[index, slab] = points.vote(classes, uniform[index] if uniform else None)
    return Samples(images=images[None], labels=labels[None])


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingGrid:
    """Positions in a source at which a slab of a patch is sampled; `axes` are those that need interpolation.

    Attributes:
        lows: per axis, the voxel below each position, broadcastable to the slab.
        fractions: per axis, the distance above that voxel, in the same shape.
        base: (*slab,) flat index of the lowest neighbour; None where the axes are separable (no rotation).
        steps: flat offsets from `base` to all 2^axes neighbours, the last axis varying fastest.
        box: of the source that is read.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    lows: tuple[torch.Tensor, ...]
    fractions: tuple[torch.Tensor, ...]
    base: torch.Tensor | None
    steps: tuple[int, ...]
    box: Box

    @classmethod
    def from_affine(cls, source: Source, grid: Sequence[torch.Tensor]) -> SamplingGrid:
        """Return the positions of a slab with the coordinates `grid`, 0 at the patch's centre."""
        shape = source.images.shape[1:]
        dims = len(shape)
        matrix = source.matrix.astype(np.float32)
        lows, fractions = [], []
        for axis in range(dims):
            position = torch.full((1,) * dims, source.centre[axis], device=grid[0].device)
            for other in np.flatnonzero(matrix[axis]).tolist():
                along = grid[other].view(-1, *(1,) * (dims - 1 - other))
                position = position + along * float(matrix[axis, other])
            lows.append(position.to(torch.int32))  # positions are not negative, so this rounds down
            fractions.append(position.frac_())
        strides = [math.prod(shape[axis + 1 :]) for axis in range(dims)]
        moved = [axis for axis in range(dims) if (matrix[axis] != np.eye(dims, dtype=np.float32)[axis]).any()]
        box = source.box or tuple((0, size) for size in shape)
        base = None
        if (matrix != np.diag(np.diag(matrix))).any():
            base = _flat(lows, shape)
        first = sum(low * stride for (low, _), stride in zip(box, strides, strict=True))
        return cls(
            shape=tuple(len(line) for line in grid),
            axes=tuple(moved),
            lows=tuple(lows),
            fractions=tuple(fractions),
            base=base,
            steps=_steps(first, [strides[axis] for axis in moved]),
            box=box,
        )

    @classmethod
    def from_positions(cls, positions: Sequence[torch.Tensor | None], shape: Sequence[int]) -> SamplingGrid:
        """Return a grid at any `positions` (*S) in a patch of `shape` S, between 0 and the last voxel of each axis.

        None means the identity along that axis.
        """
        device = next(position.device for position in positions if position is not None)
        lows, fractions = [], []
        for axis, (position, extent) in enumerate(zip(positions, shape, strict=True)):
            if position is None:
                line = torch.arange(extent, dtype=torch.int32, device=device)
                lows.append(line.view(-1, *(1,) * (len(shape) - 1 - axis)))
                fractions.append(torch.zeros((1,) * len(shape), device=device))
            else:
                lows.append(position.to(torch.int32).clamp_max_(extent - 2))
                fractions.append(position - lows[-1])
        moved = [axis for axis, position in enumerate(positions) if position is not None]
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(
            shape=tuple(shape),
            axes=tuple(moved),
            lows=tuple(lows),
            fractions=tuple(fractions),
            base=_flat(lows, shape),
            steps=_steps(0, [strides[axis] for axis in moved]),
            box=tuple((0, extent) for extent in shape),
        )

    def interpolate(self, image: torch.Tensor) -> torch.Tensor:
        """Interpolate `image` (*M) linearly."""
        if self.base is None:
            return self._along_axes(image)
        return _blend(self._neighbours(image, self.base), [self.fractions[axis] for axis in self.axes])

    def uniform_labels(self, classes: torch.Tensor) -> npt.NDArray[np.int16]:
        """Return the label that each voxel of `classes` (*M) shares with its neighbours, `_MIXED` where they differ.

        Flat, from the box's first voxel to the last one that has all neighbours; valid for all slabs of a source. CPU
        only: numpy compares small integers several times as fast as torch.
        """
        flat, strides = classes.view(-1).numpy(), classes.stride()
        first, reach = self.steps[0], self.steps[-1] - self.steps[0]
        span = sum((high - 1 - low) * stride for (low, high), stride in zip(self.box, strides, strict=True))
        labels = np.empty(span + 1 - reach, flat.dtype)
        for begin in range(0, len(labels), SLAB_VOXELS):
            out = labels[begin : begin + SLAB_VOXELS]
            part = flat[first + begin : first + begin + len(out) + reach]
            differ = np.zeros(len(part), dtype=bool)
            for stride in (strides[axis] for axis in self.axes):
                differ_along = part[: len(differ) - stride] != part[stride : len(differ)]
                differ_along |= differ[:-stride]
                differ_along |= differ[stride:]
                differ = differ_along
            out[:] = part[: len(out)]
            np.putmask(out, differ, _MIXED)
        return labels

    def vote(self, classes: torch.Tensor, uniform: npt.NDArray[np.int16] | None = None) -> torch.Tensor:
        """Return the label with the largest total weight among the neighbours in `classes` (*M).

        Args:
            classes: the labels.
            uniform: result of `uniform_labels` for them, on the CPU; computed here by default.
        """
        fractions = [self.fractions[axis].expand(self.shape) for axis in self.axes]
        base = self._flat_base(classes)
        if classes.device.type != CPU:  # finding the mixed voxels would synchronise with the host
            return _heaviest(torch.stack(self._neighbours(classes, base)), fractions)
        known = self.uniform_labels(classes) if uniform is None else uniform
        labels = known.take(base.numpy(), mode="clip")  # no index is outside; "raise" would check and take longer
        mixed = np.flatnonzero(labels == _MIXED)
        starts = base.numpy().reshape(-1)[mixed]
        around = classes.view(-1).numpy().take(starts + np.array(self.steps)[:, None], mode="clip")
        labels.reshape(-1)[mixed] = _winner(around, [part.numpy().reshape(-1)[mixed] for part in fractions])
        return torch.from_numpy(labels)

    def _neighbours(self, values: torch.Tensor, base: torch.Tensor) -> list[torch.Tensor]:
        """Return `values` (*M) at all neighbours of each position, given the flat index of its lowest one."""
        flat, index = values.reshape(-1), base.flatten()
        return [flat[step:].index_select(0, index).view(base.shape) for step in self.steps]

    def _along_axes(self, values: torch.Tensor) -> torch.Tensor:
        """Interpolate axis by axis: far cheaper than gathering all 2^axes neighbours, but only without rotation."""
        values = values[tuple(slice(*interval) for interval in self.box)]
        for axis, (low, fraction) in enumerate(zip(self.lows, self.fractions, strict=True)):
            index = low.flatten()
            below = values.index_select(axis, index)
            values = below.lerp(values.index_select(axis, index + 1), fraction) if axis in self.axes else below
        return values

    def _flat_base(self, values: torch.Tensor) -> torch.Tensor:
        if self.base is not None:
            return self.base
        return _flat(self.lows, values.shape)


def _steps(first: int, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the flat indices of a voxel and its neighbours one stride further, the last stride varying fastest."""
    steps = [first]
    for stride in strides:
        steps = [step for low in steps for step in (low, low + stride)]
    return tuple(steps)


def _flat(lows: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """Return int64 flat indices into `shape`, computed in 32 bits where they fit, which is faster."""
    total = lows[-1] if math.prod(shape) <= torch.iinfo(torch.int32).max else lows[-1].to(torch.int64)
    for axis, low in enumerate(lows[:-1]):
        total = torch.add(total, low, alpha=math.prod(shape[axis + 1 :]))
    return total.to(torch.int64)


def _blend(level: list[torch.Tensor], fractions: list[torch.Tensor]) -> torch.Tensor:
    """Interpolate the values at the corners, axis by axis."""
    for fraction in reversed(fractions):
        level = [torch.lerp(low, high, fraction) for low, high in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _winner(around: npt.NDArray[np.int16], fractions: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.int16]:
    """Return the result of `_heaviest`, faster where only two labels meet, which is nearly everywhere."""
    low, high = around.min(0), around.max(0)
    upper = around == high
    share = upper.astype(np.float32)
    for fraction in reversed(fractions):
        below, above = share[::2], share[1::2]
        share = below + fraction * (above - below)
    winner: npt.NDArray[np.int16] = np.where(share[0] > 0.5, high, low)
    upper |= around == low
    many = np.flatnonzero(~upper.all(0))
    if len(many):
        part = [torch.from_numpy(fraction[many]) for fraction in fractions]
        winner[many] = _heaviest(torch.from_numpy(around[:, many]), part).numpy()
    return winner


def _heaviest(around: torch.Tensor, fractions: list[torch.Tensor]) -> torch.Tensor:
    """Return, per position of `around` (corners, ...), the label with the largest sum of linear weights."""
    weights = torch.ones_like(around[:1], dtype=torch.float32)
    for fraction in fractions:  # the last axis varies fastest, as in the corners
        weights = (weights[:, None] * torch.stack((1 - fraction, fraction))).flatten(0, 1)
    if around.device.type == CPU:  # few positions: the overhead of an operation dominates
        totals = ((around[:, None] == around) * weights).sum(1)
    else:
        zero = torch.zeros((), device=weights.device)
        totals = torch.stack([torch.where(around == label, weights, zero).sum(0) for label in around])
    largest = torch.iinfo(around.dtype).max
    return torch.where(totals >= totals.amax(0), around, largest).amin(0)
