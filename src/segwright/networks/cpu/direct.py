"""Kernels that convolve directly, without Winograd: heads, convolutions of few channels, up-sampling.

Only in float32, without gradients, and where `library.library` returns one.

Legend: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

import ctypes
from math import ceil, prod
from typing import Final

import torch
from torch import Tensor

from segwright.networks.cpu.kernels import (
    COLUMNS,
    KERNEL_SIZES,
    LANES,
    RUN,
    Norm,
    Normalized,
    Size,
    channels_last,
    channels_last_of,
    contiguous,
    empty_records,
    kernel_source,
    kernels_for,
    tensor_of,
    to_normalized,
)

_GROUP: Final = 8  # of native/head.c
_MAX_CLASSES: Final = 8
"""Most output channels of `convolve_pointwise`, whose time grows with them; more than 14 were not timed."""
_MIN_VOXELS: Final = 4096
"""Fewest voxels for which arranging the weights pays off."""
_FEW: Final = 4
"""Most input channels of a direct convolution; from eight on Winograd is faster."""
_LINES: Final = 8
"""Rows of a job; its outputs are still in the cache when their moments are computed."""
_MIN_ROW: Final = 8
"""Shortest row of voxels for which the kernel pays off: each row is one matrix product."""


class _Few(ctypes.Structure):
    """`Few` of direct.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("n", "d", "h", "w", "c", "out", "deep", "height")]  # noqa: RUF012


def supports_pointwise(weight: Tensor, image: Tensor, stride: Size) -> bool:
    """Return whether `convolve_pointwise` supports `weight` (O, C, *K) and an image (B, C, *S), and is faster."""
    return (
        weight.ndim == image.ndim
        and set(stride) == {1}
        and set(weight.shape[2:]) == {1}
        and len(weight) <= _MAX_CLASSES
        and weight.shape[1] == image.shape[1]
        and weight.shape[1] % LANES == 0
        and len(image) * prod(image.shape[2:]) >= _MIN_VOXELS
    )


def convolve_pointwise(image: Tensor | Normalized, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a pointwise (1x1) convolution.

    Args:
        image: (B, C, *S) float32, C a multiple of 8.
        weight: (O, C, 1, 1[, 1]), see `supports_pointwise`.
        bias: (O).

    Returns:
        (B, O, *S), channels-last.
    """
    source = channels_last(tensor_of(image))
    samples, channels, voxels, classes = *source.shape[:2], prod(source.shape[2:]), len(weight)
    out = torch.empty((samples, classes, *source.shape[2:]), memory_format=channels_last_of(source))
    kernels_for(channels).call(
        "segwright_head", source.numel(), *kernel_source(image, source), samples, voxels, channels, classes,
        weight.flatten(1).contiguous(), contiguous(bias), RUN, out, work=_GROUP * channels,
    )  # fmt: skip
    return out


def supports_few_channels(weight: Tensor, image: Tensor, stride: Size) -> bool:
    """Return whether `convolve_few_channels` supports `weight` (O, C, *K) and an image (B, C, *S), and is faster."""
    return (
        weight.ndim == image.ndim
        and set(stride) == {1}
        and tuple(weight.shape[2:]) in KERNEL_SIZES
        and len(weight) % COLUMNS == 0
        and weight.shape[1] == image.shape[1] <= _FEW
        and len(image) * prod(image.shape[2:]) >= _MIN_VOXELS
    )


def convolve_few_channels(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve an image of few channels with padding that keeps its shape.

    Args:
        image: (B, C, *S) float32.
        weight: (O, C, *K), see `supports_few_channels`.
        bias: (O).

    Returns:
        (B, O, *S), channels-last.
    """
    return _convolve_few_channels(image, weight, bias, with_records=False)[0]


def convolve_few_channels_and_norm(image: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm) -> Normalized:
    """Convolve like `convolve_few_channels` and compute the norm's moments while the result is in the cache."""
    return to_normalized(*_convolve_few_channels(image, weight, bias, with_records=True), norm)


def _convolve_few_channels(
    image: Tensor, weight: Tensor, bias: Tensor | None, *, with_records: bool
) -> tuple[Tensor, Tensor]:  # empty if no records are requested
    source = channels_last(image)
    samples, channels, outputs = *source.shape[:2], len(weight)
    depth, height, width = (1, *source.shape[2:])[-3:]
    out = torch.empty((samples, outputs, *source.shape[2:]), memory_format=channels_last_of(source))
    records = empty_records(samples * with_records, depth * ceil(height / _LINES), outputs)
    taps = prod(weight.shape[2:])
    shape = _Few(samples, depth, height, width, channels, outputs, taps // 9, _LINES)
    compiled = kernels_for(outputs // 2)
    arranged = _in_columns(weight.flatten(2).permute(2, 1, 0).reshape(1, taps * channels, outputs), compiled.lanes)
    work = taps // 3 * (width + 2) * channels
    compiled.call("segwright_few", out.numel(), shape, source, arranged, contiguous(bias), out, records, work=work)
    return out, records


def supports_upsampling(weight: Tensor, image: Tensor, stride: Size) -> bool:
    """Return whether `upsample` supports `weight` (C, O, *K) and an image (B, C, *S), and is faster."""
    return (
        weight.ndim == image.ndim
        and tuple(weight.shape[2:]) == stride
        and weight.shape[0] == image.shape[1]
        and weight.shape[0] % LANES == 0
        and weight.shape[1] % COLUMNS == 0
        and image.shape[-1] >= _MIN_ROW
        and len(image) * prod(image.shape[2:]) >= _MIN_VOXELS
    )


def upsample(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a transposed convolution with stride = kernel, so that each output voxel has one input voxel.

    Args:
        image: (B, C, *S) float32.
        weight: (C, O, *K), see `supports_upsampling`.
        bias: (O).

    Returns:
        (B, O, *S * *K), channels-last.
    """
    source = channels_last(image)
    channels, outputs = weight.shape[:2]
    steps = (1, *weight.shape[2:])[-3:]
    depth, height, width = (1, *source.shape[2:])[-3:]
    size = [extent * step for extent, step in zip((depth, height, width), steps, strict=True)]
    out = torch.empty((len(source), outputs, *size[2 - weight.ndim :]), memory_format=channels_last_of(source))
    compiled = kernels_for(channels, outputs // 2)
    arranged = _in_columns(weight.flatten(2).permute(2, 0, 1), compiled.lanes)
    compiled.call(
        "segwright_upsample", out.numel(), source, len(source) * depth * height, height, width, channels, outputs,
        *steps, arranged, contiguous(bias), out,
    )  # fmt: skip
    return out


def _in_columns(weights: Tensor, lanes: int) -> Tensor:
    """Arrange weights (K, C, O) as the kernels multiply by them: (K, O / columns, C, columns)."""
    columns = 2 * lanes
    return weights.reshape(*weights.shape[:2], -1, columns).transpose(1, 2).contiguous()
