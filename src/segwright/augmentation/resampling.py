"""Patches that an affine shows of a case: images interpolated linearly, labels by the vote of their neighbours.

An affine maps centred patch coordinates (voxels, 0 at the patch's centre) to centred coordinates of the case: a
patch voxel v shows the case at `centre + matrix @ v`. Labels are resampled as one integer map, whatever their number.
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
"""Voxels added around a reading box, so that rounding in float32 never asks for a voxel that was not read."""

_MIXED = torch.iinfo(torch.int16).min
"""Stands for neighbours of several labels; no label is that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What one transformed patch is taken from: a part of a case, or a box in the whole of one.

    Attributes:
        images: (C, *M) float32, contiguous, 0 where the case ended.
        labels: (L, *M) int16, contiguous, -1 where the case ended.
        centre: where the patch's centre lies in the box of `source_box`, in voxels.
        matrix: the affine.
        box: that box in M; None where M is no more than it.
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
    """Return the box of the case with every voxel that linear interpolation of the transformed patch touches."""
    reach = np.abs(matrix) @ ((np.asarray(patch_size) - 1) / 2) + READING_MARGIN
    low, high = np.floor(centre - reach), np.floor(centre + reach)
    return tuple((int(first), int(last) + 2) for first, last in zip(low, high, strict=True))


def resample(source: Source, patch_size: Sequence[int]) -> Samples:
    """Return the patch (1, C, *patch_size) and (1, L, *patch_size) that the source's affine shows.

    Images are interpolated linearly. Each label voxel gets the label with the largest linear weight among its
    neighbours, the smallest label on a tie: the argmax of linearly interpolated one-hot maps, padding (-1) included.
    """
    device = source.images.device
    images = torch.empty((len(source.images), *patch_size), device=device)
    labels = torch.empty((len(source.labels), *patch_size), dtype=source.labels.dtype, device=device)
    grid = [torch.arange(size, device=device) - (size - 1) / 2 for size in patch_size]
    rows = patch_size[0] if device.type != CPU else max(1, SLAB_VOXELS // math.prod(patch_size[1:]))
    agreed: list[npt.NDArray[np.int16]] = []
    for begin in range(0, patch_size[0], rows):
        slab = slice(begin, min(begin + rows, patch_size[0]))
        points = Points.of(source, [grid[0][slab], *grid[1:]])
        for channel, image in enumerate(source.images):
            images[channel, slab] = points.interpolate(image)
        if device.type == CPU:
            agreed = agreed or [points.agreed(classes) for classes in source.labels]
        for index, classes in enumerate(source.labels):
            labels[index, slab] = points.vote(classes, agreed[index] if agreed else None)
    return Samples(images=images[None], labels=labels[None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Points between voxels of a source, where a slab of a patch looks; `axes` are those it looks between voxels of.

    Attributes:
        lows: per axis, the voxel below each point, in the shape that the points of that axis differ in.
        fractions: per axis, how far above that voxel it is, in the same shape.
        base: (*slab,) flat index of the voxel below in all axes; None where the axes are apart (no rotation).
        steps: from there to all 2^axes neighbours, the last axis varying fastest.
        box: of the source.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    lows: tuple[torch.Tensor, ...]
    fractions: tuple[torch.Tensor, ...]
    base: torch.Tensor | None
    steps: tuple[int, ...]
    box: Box

    @classmethod
    def of(cls, source: Source, grid: Sequence[torch.Tensor]) -> Points:
        """Return the points of a slab with the coordinates `grid`, 0 at the patch's centre."""
        shape = source.images.shape[1:]
        dims = len(shape)
        matrix = source.matrix.astype(np.float32)
        lows, fractions = [], []
        for axis in range(dims):
            position = torch.full((1,) * dims, source.centre[axis], device=grid[0].device)
            for other in np.flatnonzero(matrix[axis]).tolist():
                along = grid[other].view(-1, *(1,) * (dims - 1 - other))
                position = position + along * float(matrix[axis, other])
            lows.append(position.to(torch.int32))  # no position is negative, so this rounds down
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
    def at(cls, positions: Sequence[torch.Tensor | None], shape: Sequence[int]) -> Points:
        """Return points at any `positions` (*S) in a patch of `shape` S, between 0 and the last voxel of each axis.

        None stands for an axis along which every voxel stays.
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

    def agreed(self, classes: torch.Tensor) -> npt.NDArray[np.int16]:
        """Return the label that each voxel of `classes` (*M) shares with its neighbours, `_MIXED` where they differ.

        Flat, from the box's first voxel to the last one that has all neighbours; it serves all slabs of a source. On
        the CPU only, as all that numpy does here: it compares and finds small integers several times as fast as torch.
        """
        flat, strides = classes.view(-1).numpy(), classes.stride()
        first, reach = self.steps[0], self.steps[-1] - self.steps[0]
        span = sum((high - 1 - low) * stride for (low, high), stride in zip(self.box, strides, strict=True))
        agreed = np.empty(span + 1 - reach, flat.dtype)
        for begin in range(0, len(agreed), SLAB_VOXELS):
            out = agreed[begin : begin + SLAB_VOXELS]
            part = flat[first + begin : first + begin + len(out) + reach]
            differ = np.zeros(len(part), dtype=bool)
            for stride in (strides[axis] for axis in self.axes):
                further = part[: len(differ) - stride] != part[stride : len(differ)]
                further |= differ[:-stride]
                further |= differ[stride:]
                differ = further
            out[:] = part[: len(out)]
            np.putmask(out, differ, _MIXED)
        return agreed

    def vote(self, classes: torch.Tensor, agreed: npt.NDArray[np.int16] | None = None) -> torch.Tensor:
        """Return the label with the largest total weight among the neighbours in `classes` (*M).

        Args:
            classes: the labels.
            agreed: what `agreed` gave for them, on the CPU; found here by default.
        """
        fractions = [self.fractions[axis].expand(self.shape) for axis in self.axes]
        base = self._flat_base(classes)
        if classes.device.type != CPU:  # finding the mixed voxels would make the host wait
            return _heaviest(torch.stack(self._neighbours(classes, base)), fractions)
        found = self.agreed(classes) if agreed is None else agreed
        labels = found.take(base.numpy(), mode="clip")  # no index is outside; to look first takes longer
        mixed = np.flatnonzero(labels == _MIXED)
        few = base.numpy().reshape(-1)[mixed]
        around = classes.view(-1).numpy().take(few + np.array(self.steps)[:, None], mode="clip")
        labels.reshape(-1)[mixed] = _winner(around, [part.numpy().reshape(-1)[mixed] for part in fractions])
        return torch.from_numpy(labels)

    def _neighbours(self, values: torch.Tensor, base: torch.Tensor) -> list[torch.Tensor]:
        """Return `values` (*M) at all neighbours of the points whose lowest ones are at the flat indices `base`."""
        flat, index = values.reshape(-1), base.flatten()
        return [flat[step:].index_select(0, index).view(base.shape) for step in self.steps]

    def _along_axes(self, values: torch.Tensor) -> torch.Tensor:
        """Interpolate axis by axis, which is far less than all 2^axes neighbours where no axis is turned."""
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
    """Return flat indices into `shape`: added up in 32 bits where they fit, which is faster, but read in 64."""
    total = lows[-1] if math.prod(shape) <= torch.iinfo(torch.int32).max else lows[-1].to(torch.int64)
    for axis, low in enumerate(lows[:-1]):
        total = torch.add(total, low, alpha=math.prod(shape[axis + 1 :]))
    return total.to(torch.int64)


def _blend(level: list[torch.Tensor], fractions: list[torch.Tensor]) -> torch.Tensor:
    """Reduce the values at the corners to one, axis by axis."""
    for fraction in reversed(fractions):
        level = [torch.lerp(low, high, fraction) for low, high in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _winner(around: npt.NDArray[np.int16], fractions: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.int16]:
    """Return `_heaviest` by a shorter way where only two labels meet, which is nearly everywhere."""
    low, high = around.min(0), around.max(0)
    upper = around == high
    share = upper.astype(np.float32)
    for fraction in reversed(fractions):
        below, above = share[::2], share[1::2]
        share = below + fraction * (above - below)
    winner: npt.NDArray[np.int16] = np.where(share[0] > 0.5, high, low)
    upper |= around == low
    crowded = np.flatnonzero(~upper.all(0))
    if len(crowded):
        part = [torch.from_numpy(fraction[crowded]) for fraction in fractions]
        winner[crowded] = _heaviest(torch.from_numpy(around[:, crowded]), part).numpy()
    return winner


def _heaviest(around: torch.Tensor, fractions: list[torch.Tensor]) -> torch.Tensor:
    """Return, per point of `around` (corners, ...), the label with the largest sum of linear weights."""
    weights = torch.ones_like(around[:1], dtype=torch.float32)
    for fraction in fractions:  # the last axis varies fastest, as in the corners
        weights = (weights[:, None] * torch.stack((1 - fraction, fraction))).flatten(0, 1)
    if around.device.type == CPU:  # few points, for which each operation costs more than its arithmetic
        totals = ((around[:, None] == around) * weights).sum(1)
    else:
        nothing = torch.zeros((), device=weights.device)
        totals = torch.stack([torch.where(around == label, weights, nothing).sum(0) for label in around])
    largest = torch.iinfo(around.dtype).max
    return torch.where(totals >= totals.amax(0), around, largest).amin(0)
