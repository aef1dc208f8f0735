"""Triton kernels of instance norm, sum with a residual, and LeakyReLU, forwards and backwards.

Images (B, C, *S) are channels-last. All kernels have the same grid: axis 0 is a part of a sample's voxels, axis 1 a
block of channels, axis 2 the sample. Each computes in float32, whatever the dtype of the image. The first kernel of a
pass writes sums over each part, the second adds them up in a fixed order, so that results are deterministic.

Sizes that all kernels take: `voxels` and `channels` of a sample, `part_size` voxels in each of `parts` parts, and a
tile of `voxel_block` times `channel_block` values.

Legend: B samples, C channels, S spatial axes, P parts.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def moments(
    x: tl.tensor, partial: tl.tensor, voxels: tl.tensor, channels: tl.tensor, part_size: tl.tensor, parts: tl.tensor,
    voxel_block: tl.constexpr, channel_block: tl.constexpr,
) -> None:  # fmt: skip
    """Write mean and sum of squared deviations of each channel of `x` (B, C, *S) in a part: (B, P, 2, C)."""
    sample, channel = _place(channel_block)
    x += sample * voxels * channels
    first = tl.program_id(0) * part_size
    end = tl.minimum(first + part_size, voxels)
    mean = tl.zeros((channel_block,), tl.float32)
    squares = tl.zeros((channel_block,), tl.float32)
    for start in range(first, end, voxel_block):
        offsets, inside = _tile(start, end, channels, channel, voxel_block)
        tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        # Tiles are merged by their means (Chan et al. 1983): sums of squares alone lose the digits of a large mean.
        seen = (start - first).to(tl.float32)
        count = tl.minimum(end - start, voxel_block).to(tl.float32)
        tile_mean = tl.sum(tile, axis=0) / count
        deviation = tl.where(inside, tile - tile_mean[None, :], 0.0)
        shift = tile_mean - mean
        share = count / (seen + count)
        mean += shift * share
        squares += tl.sum(deviation * deviation, axis=0) + shift * shift * seen * share
    _store_pair(partial, mean, squares, sample * parts + tl.program_id(0), channels, channel)


@triton.jit
def normalize(
    x: tl.tensor, residual: tl.tensor, weight: tl.tensor, bias: tl.tensor, partial: tl.tensor, stats: tl.tensor,
    out: tl.tensor, eps: tl.tensor, slope: tl.tensor, voxels: tl.tensor, channels: tl.tensor, part_size: tl.tensor,
    parts: tl.tensor,
    voxel_block: tl.constexpr, channel_block: tl.constexpr, max_parts: tl.constexpr,
) -> None:  # fmt: skip
    """Write the LeakyReLU of norm and residual to `out` (B, C, *S); mean and inverse deviation to `stats` (B, 2, C)."""
    sample, channel = _place(channel_block)
    means, squares = _load_parts(partial, sample, parts, channels, channel, max_parts)
    part = tl.arange(0, max_parts)
    counts = tl.where(part < parts, tl.minimum(voxels - part * part_size, part_size), 0).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, axis=0) / voxels
    deviation = means - mean[None, :]
    variance = tl.sum(squares + counts * deviation * deviation, axis=0) / voxels
    inverse = 1.0 / tl.sqrt(variance + eps)
    if tl.program_id(0) == 0:
        _store_pair(stats, mean, inverse, sample, channels, channel)
    scale, shift = _affine(weight, bias, inverse, channels, channel)
    first = tl.program_id(0) * part_size
    end = tl.minimum(first + part_size, voxels)
    base = sample * voxels * channels
    for start in range(first, end, voxel_block):
        offsets, inside = _tile(start, end, channels, channel, voxel_block)
        tile = tl.load(x + base + offsets, mask=inside, other=0.0).to(tl.float32)
        value = (tile - mean[None, :]) * scale[None, :] + shift[None, :]
        if residual is not None:
            value += tl.load(residual + base + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(value > 0, value, value * slope)
        tl.store(out + base + offsets, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gradient_sums(
    grad: tl.tensor, x: tl.tensor, out: tl.tensor, weight: tl.tensor, bias: tl.tensor, stats: tl.tensor,
    partial: tl.tensor, slope: tl.tensor, voxels: tl.tensor, channels: tl.tensor, part_size: tl.tensor,
    parts: tl.tensor,
    voxel_block: tl.constexpr, channel_block: tl.constexpr,
) -> None:  # fmt: skip
    """Write the sums over a part of LeakyReLU's gradient, alone and times the normalised image: (B, P, 2, C)."""
    sample, channel = _place(channel_block)
    mean, inverse = _load_pair(stats, sample, channels, channel)
    scale, shift = _affine(weight, bias, inverse, channels, channel)
    total = tl.zeros((channel_block,), tl.float32)
    product = tl.zeros((channel_block,), tl.float32)
    first = tl.program_id(0) * part_size
    end = tl.minimum(first + part_size, voxels)
    base = sample * voxels * channels
    for start in range(first, end, voxel_block):
        offsets, inside = _tile(start, end, channels, channel, voxel_block)
        centred = tl.load(x + base + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        upstream = _activation_gradient(grad, out, base + offsets, inside, centred, scale, shift, slope)
        total += tl.sum(upstream, axis=0)
        product += tl.sum(upstream * centred * inverse[None, :], axis=0)
    _store_pair(partial, total, product, sample * parts + tl.program_id(0), channels, channel)


@triton.jit
def input_gradient(
    grad: tl.tensor, x: tl.tensor, out: tl.tensor, weight: tl.tensor, bias: tl.tensor, stats: tl.tensor,
    partial: tl.tensor, grad_x: tl.tensor, grad_residual: tl.tensor, slope: tl.tensor, voxels: tl.tensor,
    channels: tl.tensor, part_size: tl.tensor, parts: tl.tensor,
    voxel_block: tl.constexpr, channel_block: tl.constexpr, max_parts: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradients of image and residual (B, C, *S), from the sums that `gradient_sums` wrote."""
    sample, channel = _place(channel_block)
    mean, inverse = _load_pair(stats, sample, channels, channel)
    scale, shift = _affine(weight, bias, inverse, channels, channel)
    totals, products = _load_parts(partial, sample, parts, channels, channel, max_parts)
    mean_gradient = tl.sum(totals, axis=0) / voxels
    mean_product = tl.sum(products, axis=0) / voxels
    first = tl.program_id(0) * part_size
    end = tl.minimum(first + part_size, voxels)
    base = sample * voxels * channels
    for start in range(first, end, voxel_block):
        offsets, inside = _tile(start, end, channels, channel, voxel_block)
        centred = tl.load(x + base + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        upstream = _activation_gradient(grad, out, base + offsets, inside, centred, scale, shift, slope)
        if grad_residual is not None:
            tl.store(grad_residual + base + offsets, upstream.to(grad_residual.dtype.element_ty), mask=inside)
        remainder = upstream - mean_gradient[None, :] - centred * (inverse * mean_product)[None, :]
        tl.store(grad_x + base + offsets, (remainder * scale[None, :]).to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def _place(channel_block: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return the program's sample as int64, and its channels."""
    return tl.program_id(2).to(tl.int64), tl.program_id(1) * channel_block + tl.arange(0, channel_block)


@triton.jit
def _tile(
    start: tl.tensor, end: tl.tensor, channels: tl.tensor, channel: tl.tensor, voxel_block: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the offsets of a tile in its sample, and which of its values exist: (voxel_block, channel_block)."""
    voxel = start + tl.arange(0, voxel_block)
    inside = (voxel < end)[:, None] & (channel < channels)[None, :]
    return voxel[:, None] * channels + channel[None, :], inside


@triton.jit
def _affine(
    weight: tl.tensor, bias: tl.tensor, inverse: tl.tensor, channels: tl.tensor, channel: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Return what the centred image is multiplied by, and what is added then, for each channel."""
    scale = inverse
    shift = tl.zeros_like(inverse)
    if weight is not None:
        scale = inverse * tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit
def _activation_gradient(
    grad: tl.tensor,
    out: tl.tensor,
    offsets: tl.tensor,
    inside: tl.tensor,
    centred: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    slope: tl.tensor,
) -> tl.tensor:
    """Return the gradient of a tile before the LeakyReLU; the sign is that of `out`, or is computed again."""
    if out is not None:
        value = tl.load(out + offsets, mask=inside, other=0.0).to(tl.float32)
    else:
        value = centred * scale[None, :] + shift[None, :]
    upstream = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
    return tl.where(value > 0, upstream, upstream * slope)


@triton.jit
def _store_pair(
    target: tl.tensor, first: tl.tensor, second: tl.tensor, row: tl.tensor, channels: tl.tensor, channel: tl.tensor
) -> None:
    """Write two values of each channel into a row of `target` (rows, 2, C)."""
    place = target + row * 2 * channels + channel
    tl.store(place, first, mask=channel < channels)
    tl.store(place + channels, second, mask=channel < channels)


@triton.jit
def _load_pair(
    source: tl.tensor, row: tl.tensor, channels: tl.tensor, channel: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Read two values of each channel from a row of `source` (rows, 2, C)."""
    place = source + row * 2 * channels + channel
    exists = channel < channels
    return tl.load(place, mask=exists, other=0.0), tl.load(place + channels, mask=exists, other=0.0)


@triton.jit
def _load_parts(
    partial: tl.tensor,
    sample: tl.tensor,
    parts: tl.tensor,
    channels: tl.tensor,
    channel: tl.tensor,
    max_parts: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Read the two values of all parts of a sample, two times (max_parts, channel_block); 0 for parts that are not."""
    part = tl.arange(0, max_parts)
    exists = (part < parts)[:, None] & (channel < channels)[None, :]
    places = partial + ((sample * parts + part) * 2 * channels)[:, None] + channel[None, :]
    return tl.load(places, mask=exists, other=0.0), tl.load(places + channels, mask=exists, other=0.0)
