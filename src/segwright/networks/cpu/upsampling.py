"""Up-sampling and the convolution that follows it, merged into one convolution on the coarse grid.

A transposed convolution with kernel = stride fills each fine voxel from one coarse voxel; a 3-wide kernel on the fine
grid therefore sees only two coarse voxels along an axis that doubles. Multiplying both weights together once per step
gives, for each of the fine grid's phases, a 2-wide kernel on the coarse grid: about half the multiplications, and the
up-sampled image is never made. The result is the same to rounding; so are all gradients.

Legend: B batch, C channels, S spatial axes; along one axis: phase p and coarse offset j of the merged kernel, tap u of
the fine kernel, part r of the transposed kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from segwright.networks.cpu.convolution import (
    conv_of_concat,
    is_eager_cpu,
    is_plain_conv,
    is_plain_upsampling,
    layout_of,
    upsample_by,
)

# Merge only where it saves this share of the multiplications: it costs some copying. Timed on 3D networks, 2 cores.
WORTHWHILE: Final = 0.7

Size = tuple[int, ...]
Region = tuple[slice, ...]


@wrap_torch_function(lambda upsample, conv, x, skip: (x, skip))  # `CpuKernelMode` overrides it
def upsample_concat_conv(upsample: nn.Module, conv: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """Return `conv(cat(upsample(x), skip))`.

    Args:
        upsample: transposed convolution with kernel = stride.
        conv: convolution on the fine grid.
        x: (B, C, *S) on the coarse grid.
        skip: (B, C', *S') on the fine grid.
    """
    if not is_plain_upsampling(upsample) or not is_plain_conv(conv):
        return conv_of_concat(conv, upsample_by(upsample, x), skip)
    if not _is_worthwhile(upsample, conv, x, skip):
        return conv_of_concat(conv, upsample_by(upsample, x), skip)
    stride, kernel = tuple(upsample.stride), tuple(conv.kernel_size)
    layout = layout_of(conv.weight)
    with torch.autocast("cpu", enabled=False):  # products of weights are made, and rounded, only once
        near, far = conv.weight.tensor_split([upsample.out_channels], 1)
        merged = _merge(upsample.weight, near, stride)
        bias, border = _merge_bias(upsample.bias, near, conv.bias)
    padding = [width for size in reversed(kernel) for width in (size // 2,) * 2]
    coarse = nn.functional.pad(x, padding)
    convolve = nn.functional.conv2d if x.ndim == 4 else nn.functional.conv3d
    phases = convolve(coarse, merged.contiguous(memory_format=layout))
    fine = conv._conv_forward(skip, far.contiguous(memory_format=layout), bias)
    out: Tensor = _AddPhases.apply(fine, phases, border, stride, kernel)  # type: ignore[no-untyped-call]
    return out


def _is_worthwhile(
    upsample: nn.ConvTranspose2d | nn.ConvTranspose3d, conv: nn.Conv2d | nn.Conv3d, x: Tensor, skip: Tensor
) -> bool:
    """Return whether merging is possible here, and saves enough multiplications."""
    stride, kernel, fine = tuple(upsample.stride), tuple(conv.kernel_size), tuple(skip.shape[2:])
    if not is_eager_cpu(x) or not {*stride} <= {1, 2} or not {*kernel} <= {1, 3}:
        return False
    if tuple(upsample.kernel_size) != stride or any(size < 2 for size in fine):
        return False
    inputs, middle, outputs = upsample.in_channels, upsample.out_channels, conv.out_channels
    separate = len(x) * prod(fine) * (prod(kernel) * outputs + inputs) * middle
    taps = [_taps(step, size) for step, size in zip(stride, kernel, strict=True)]
    extents = [
        extent + (step == 2 and size == 3) for extent, step, size in zip(x.shape[2:], stride, kernel, strict=True)
    ]
    places = prod(stride) * prod(taps)
    merged = len(x) * prod(extents) * places * inputs * outputs
    merging = (
        prod(kernel) * prod(stride) * (middle + places) * inputs * outputs
    )  # large compared with the work where there are few voxels
    return merged + merging < WORTHWHILE * separate


def _taps(step: int, size: int) -> int:
    """Return how many coarse voxels a fine kernel of `size` sees along an axis with stride `step`."""
    return 1 if size == 1 else 4 - step


@lru_cache(maxsize=8)
def _selections(stride: Size, kernel: Size) -> Tensor:
    """Return which (tap, part) pairs of all axes make which (phase, offset) pairs: a 0-1 matrix (p * j, u * r)."""
    taps = tuple(_taps(step, size) for step, size in zip(stride, kernel, strict=True))
    with torch.inference_mode(mode=False):  # kept for trainings that follow a prediction
        matrix = torch.zeros((*stride, *taps, *kernel, *stride))
    for phase in product(*(range(step) for step in stride)):
        for tap in product(*(range(size) for size in kernel)):
            places = [_place(*axis) for axis in zip(phase, tap, stride, kernel, strict=True)]
            matrix[(*phase, *(offset for offset, _ in places), *tap, *(part for _, part in places))] = 1.0
    return matrix.reshape(prod(stride) * prod(taps), -1)


def _place(phase: int, tap: int, step: int, size: int) -> tuple[int, int]:
    """Return the merged kernel's offset and the transposed kernel's part that a tap meets, along one axis."""
    coarse, part = divmod(phase + tap - size // 2, step)
    return coarse + (size // 2 if phase == 0 else 0), part


def _merge(transposed: Tensor, near: Tensor, stride: Size) -> Tensor:
    """Multiply the weights of both layers: (I, M, *r) and (O, M, *u) to (P * O, I, *j), P the number of phases."""
    kernel = tuple(near.shape[2:])
    inputs, outputs = transposed.shape[0], near.shape[0]
    left = near.flatten(2).permute(2, 0, 1)  # (u, O, M)
    right = transposed.flatten(2).permute(2, 1, 0)  # (r, M, I)
    products = left.unsqueeze(1) @ right.unsqueeze(0)  # (u, r, O, I)
    chosen = _selections(stride, kernel).to(near.dtype) @ products.flatten(2).flatten(0, 1)
    num_phases, taps = prod(stride), tuple(_taps(step, size) for step, size in zip(stride, kernel, strict=True))
    merged = chosen.reshape(num_phases, prod(taps), outputs, inputs).transpose(1, 2)
    return merged.reshape(num_phases * outputs, *taps, inputs).movedim(-1, 1)


def _merge_bias(transposed: Tensor | None, near: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the bias inside the image, and how it differs at its border, where the fine kernel meets padding.

    Returns:
        (O,), and (O, 3, 3[, 3]): first voxel, inside, last voxel along each axis.
    """
    if transposed is None:
        return bias, None
    taps = torch.tensordot(near, transposed, dims=([1], [0]))  # (O, *u)
    inside = taps.flatten(1).sum(1)
    border = taps
    for size in near.shape[2:]:
        seen = [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0]] if size == 3 else [[1.0]] * 3
        border = torch.tensordot(border, border.new_tensor(seen), dims=([1], [1]))
    border = border - inside.reshape(-1, *(1,) * (near.ndim - 2))
    return inside if bias is None else bias + inside, border


def _phases(fine: Size, stride: Size, kernel: Size) -> Iterator[tuple[Region, Region]]:
    """Yield the fine voxels of each phase, and where the merged convolution has them."""
    for phase in product(*(range(step) for step in stride)):
        starts = [
            part if step == 2 and size == 3 else 0 for part, step, size in zip(phase, stride, kernel, strict=True)
        ]
        yield (
            tuple(slice(part, None, step) for part, step in zip(phase, stride, strict=True)),
            tuple(slice(start, start + size // step) for start, size, step in zip(starts, fine, stride, strict=True)),
        )


def _borders(dims: int) -> Iterator[tuple[Size, Region]]:
    """Yield each class of border voxels: its index in (3, 3[, 3]) and where it lies."""
    places = (slice(0, 1), slice(1, -1), slice(-1, None))
    for index in product(range(3), repeat=dims):
        if any(place != 1 for place in index):
            yield index, tuple(places[place] for place in index)


def _block(number: int, size: int) -> slice:
    """Return the channels of one phase."""
    return slice(number * size, (number + 1) * size)


class _AddPhases(torch.autograd.Function):
    """Add the phases of a merged convolution, and the border's bias, to a fine image in place."""

    @staticmethod
    def forward(
        ctx: Any, fine: Tensor, phases: Tensor, border: Tensor | None, stride: Size, kernel: Size
    ) -> Tensor:  # (B, O, *S'), (B, P * O, *S), (O, 3, 3[, 3])
        ctx.stride, ctx.kernel, ctx.layout = stride, kernel, layout_of(phases)
        ctx.shape, ctx.dtype = phases.shape, None if border is None else border.dtype
        channels = fine.shape[1]
        for number, (where, source) in enumerate(_phases(tuple(fine.shape[2:]), stride, kernel)):
            fine[(slice(None), slice(None), *where)] += phases[(slice(None), _block(number, channels), *source)]
        if border is not None:
            values = border.to(fine.dtype).movedim(0, -1).contiguous()
            for index, where in _borders(len(stride)):
                fine[(slice(None), slice(None), *where)] += values[index].reshape(-1, *(1,) * len(stride))
        ctx.mark_dirty(fine)
        return fine

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        channels, fine = grad.shape[1], tuple(grad.shape[2:])
        grad_phases = None
        if ctx.needs_input_grad[1]:
            grad_phases = torch.empty(ctx.shape, dtype=grad.dtype, memory_format=ctx.layout)
            for number, (where, source) in enumerate(_phases(fine, ctx.stride, ctx.kernel)):
                part = grad_phases[:, _block(number, channels)]
                part[(slice(None), slice(None), *source)] = grad[(slice(None), slice(None), *where)]
                for axis, taken in enumerate(source, start=2):
                    part.narrow(axis, 0, taken.start).zero_()
                    part.narrow(axis, taken.stop, part.shape[axis] - taken.stop).zero_()
        grad_border = None
        if ctx.dtype is not None and ctx.needs_input_grad[2]:
            grad_border = torch.zeros((channels, *(3,) * len(fine)), dtype=ctx.dtype)
            axes = [0, *range(2, grad.ndim)]
            for index, where in _borders(len(fine)):
                part = grad[(slice(None), slice(None), *where)]
                grad_border.movedim(0, -1)[index] = part.to(ctx.dtype).sum(axes)
        return grad, grad_phases, grad_border, None, None
