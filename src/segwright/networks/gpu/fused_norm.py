"""Instance norm with sum and LeakyReLU as one operation of torch, computed by the Triton kernels.

Between the passes it keeps the image, mean and inverse deviation, and after a sum also the output, which the next layer
keeps anyway. In eager mode an `autograd.Function` calls the kernels, since the custom operations, which `torch.compile`
needs, cost the host twice the time (43 and 121 microseconds for both passes, torch 2.13).

Legend: B samples, C channels, S spatial axes, P parts of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE: Final = 4096
"""Values of an image that a program reads at once, 16 in each of its 256 threads: all kernels then need at most 128
registers (compiled for sm_90), so that two programs or more share a processor."""
_OPTIONS: Final = MappingProxyType({"num_warps": 8, "enable_fp_fusion": False})
"""Of Triton's compiler; without fused multiply-add both passes find the same sign before the LeakyReLU."""
_MAX_CHANNEL_BLOCK: Final = 64
"""Channels of a program: 128 bytes of bf16 in a row are one line of the GPU's cache."""
_PROGRAMS: Final = 512
"""Programs of a launch where there are enough voxels: about 4 for each processor of an H100. Like the sizes above it
was chosen from the hardware's description and not yet measured."""
_MAX_PARTS: Final = 128
"""Parts of a sample, whose sums each program of a second kernel adds up in registers."""

Backward: TypeAlias = Callable[..., tuple[Tensor, Tensor, Tensor]]


def fused_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float
) -> Tensor:
    """Return `leaky_relu(instance_norm(x) + residual)`, channels-last, in the dtype of `x`.

    Statistics and sums are float32, with or without autocast.

    Args:
        x: (B, C, *S) with two or three spatial axes.
        weight: (C), or None.
        bias: (C), or None.
        residual: like `x`, or None.
        eps: added to the variance.
        slope: negative slope of the LeakyReLU, at least 0; 1 for none.
    """
    arguments = (x, weight, bias, residual, eps, slope)
    if torch.compiler.is_compiling():
        out: Tensor = _FORWARD_OP(*arguments)[0]
    elif torch.is_grad_enabled():
        out = _FusedNorm.apply(*arguments)[0]  # type: ignore[no-untyped-call]
    else:
        out = _forward(*arguments)[0]
    return out


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor]:
    """Return the output (B, C, *S), and mean and inverse deviation (B, 2, C) of each channel."""
    from segwright.networks.gpu import kernels

    x, residual = _channels_last(x), None if residual is None else _channels_last(residual)
    grid, out, stats = _Grid.of(x), torch.empty_like(x), _empty_stats(x)
    partial = grid.empty_sums(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.moments[grid.shape](x, partial, *grid.sizes, **grid.blocks)
        kernels.normalize[grid.shape](
            x, residual, weight, bias, partial, stats, out, eps, slope, *grid.sizes, **grid.blocks, max_parts=_MAX_PARTS
        )
    return out, stats


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, out: Tensor | None, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of image, of bias and weight (2, C) in float32, and of the residual; empty without `out`.

    Args:
        grad: of the output.
        x: the image.
        weight: of the norm.
        bias: of the norm.
        stats: as `_forward` returned them.
        out: the output, where there was a residual.
        slope: of the LeakyReLU.
    """
    from segwright.networks.gpu import kernels

    grad, x, out = _channels_last(grad), _channels_last(x), None if out is None else _channels_last(out)
    grid, grad_x = _Grid.of(x), torch.empty_like(x)
    partial, grad_residual = grid.empty_sums(x), None if out is None else torch.empty_like(x)
    saved = (grad, x, out, weight, bias, stats, partial)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.gradient_sums[grid.shape](*saved, slope, *grid.sizes, **grid.blocks)
        kernels.input_gradient[grid.shape](
            *saved, grad_x, grad_residual, slope, *grid.sizes, **grid.blocks, max_parts=_MAX_PARTS
        )
    return grad_x, partial.sum((0, 1)), x.new_empty(0) if grad_residual is None else grad_residual


@dataclass(frozen=True, slots=True)
class _Grid:
    """How the programs of all kernels share an image.

    Attributes:
        shape: parts, blocks of channels, samples.
        sizes: voxels, channels, voxels of a part, parts.
        blocks: voxels and channels of a tile, and options of the compiler.
    """

    shape: tuple[int, int, int]
    sizes: tuple[int, int, int, int]
    blocks: dict[str, int]

    @classmethod
    def of(cls, x: Tensor) -> _Grid:
        """Return the grid for an image (B, C, *S)."""
        samples, channels, voxels = len(x), x.shape[1], prod(x.shape[2:])
        channel_block = min(_MAX_CHANNEL_BLOCK, 1 << (channels - 1).bit_length())
        voxel_block = _TILE // channel_block
        num_blocks, num_tiles = _ceil_div(channels, channel_block), _ceil_div(voxels, voxel_block)
        wanted = min(_MAX_PARTS, _ceil_div(_PROGRAMS, samples * num_blocks))
        part_size = _ceil_div(num_tiles, wanted) * voxel_block
        parts = _ceil_div(voxels, part_size)
        return cls(
            shape=(parts, num_blocks, samples),
            sizes=(voxels, channels, part_size, parts),
            blocks={"voxel_block": voxel_block, "channel_block": channel_block, **_OPTIONS},
        )

    def empty_sums(self, x: Tensor) -> Tensor:
        """Return an array (B, P, 2, C) for two sums over each part."""
        return x.new_empty((len(x), self.shape[0], 2, x.shape[1]), dtype=torch.float32)


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _empty_stats(x: Tensor) -> Tensor:
    return x.new_empty((len(x), 2, x.shape[1]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the backward pass needs."""
    x, weight, bias, residual, _, slope = inputs
    out, stats = output
    ctx.save_for_backward(x, weight, bias, stats, None if residual is None else out)
    ctx.set_materialize_grads(False)  # else there is a gradient of zeros for the statistics
    ctx.slope = slope


def _gradients(backward: Backward, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradient of each argument of `fused_norm`."""
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    x, weight, bias, stats, out = ctx.saved_tensors
    grad_x, (grad_bias, grad_weight), grad_residual = backward(grad, x, weight, bias, stats, out, ctx.slope)
    gradients = (
        grad_x,
        None if weight is None else grad_weight.to(weight.dtype),
        None if bias is None else grad_bias.to(bias.dtype),
        None if out is None else grad_residual,
    )
    needed = ctx.needs_input_grad
    return (*(each if needs else None for each, needs in zip(gradients, needed, strict=False)), None, None)


class _FusedNorm(torch.autograd.Function):
    """The kernels in eager mode."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return _forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        _save(ctx, inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return _gradients(_backward, ctx, grad)


_FORWARD_OP = torch.library.custom_op(
    "segwright::fused_norm",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, float slope) -> (Tensor, Tensor)",
)
_BACKWARD_OP = torch.library.custom_op(
    "segwright::fused_norm_backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor stats, Tensor? out, float slope) "
        "-> (Tensor, Tensor, Tensor)"
    ),
)


@_FORWARD_OP.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_channels_last(x)), _empty_stats(x)


@_BACKWARD_OP.register_fake
def _(grad: Tensor, x: Tensor, weight: Any, bias: Any, stats: Any, out: Tensor | None, slope: float) -> Any:
    grad_x = torch.empty_like(_channels_last(x))
    return grad_x, stats.new_empty((2, x.shape[1])), x.new_empty(0) if out is None else torch.empty_like(grad_x)


_FORWARD_OP.register_autograd(lambda ctx, grad, _: _gradients(_BACKWARD_OP, ctx, grad), setup_context=_save)
