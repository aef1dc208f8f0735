"""Convolutions for the CPU: of two tensors without concatenating them, and with fast bias gradients.

Legend: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import wrap_torch_function


@wrap_torch_function(lambda conv, first, second: (first, second))  # `CpuKernelMode` overrides it
def conv_of_concat(conv: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Return `conv` applied to two tensors (B, C, *S) concatenated along the channels.

    On the CPU it is the sum of two convolutions with a part of the weights each: equal to rounding, and faster than
    copying both tensors together, and their gradients apart.
    """
    if not is_plain_conv(conv) or not is_eager_cpu(first):
        whole: Tensor = conv(torch.cat((first, second), 1))
        return whole
    layout = layout_of(conv.weight)
    parts = [part.contiguous(memory_format=layout) for part in conv.weight.tensor_split([first.shape[1]], 1)]
    out: Tensor = conv._conv_forward(first, parts[0], conv.bias)
    return out.add_(conv._conv_forward(second, parts[1], None))


def upsample_by(transposed: nn.Module, x: Tensor) -> Tensor:
    """Return a transposed convolution of `x` (B, C, *S); on the CPU its bias gradient is a plain sum.

    torch's own takes longer for the bias than for all the rest of the layer.
    """
    if not is_plain_upsampling(transposed) or not is_eager_cpu(x) or transposed.bias is None:
        out: Tensor = transposed(x)
        return out
    convolve = nn.functional.conv_transpose2d if x.ndim == 4 else nn.functional.conv_transpose3d
    padding = [int(width) for width in transposed.padding]
    out = convolve(
        x, transposed.weight, transposed.bias.detach(), transposed.stride, padding,
        transposed.output_padding, transposed.groups, transposed.dilation,
    )  # fmt: skip
    fed: Tensor = _BiasGradient.apply(out, transposed.bias)  # type: ignore[no-untyped-call]
    return fed


def is_plain_conv(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether a convolution is exactly torch's class; a subclass may compute something else."""
    return type(module) in {nn.Conv2d, nn.Conv3d}


def is_plain_upsampling(module: nn.Module | None) -> TypeGuard[nn.ConvTranspose2d | nn.ConvTranspose3d]:
    """Return whether a transposed convolution is exactly torch's class; False for None."""
    return type(module) in {nn.ConvTranspose2d, nn.ConvTranspose3d}


def is_eager_cpu(x: Tensor) -> bool:
    """Return whether `x` is a real tensor on the CPU; tracers and compilers get torch's own layers."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return x.device.type == "cpu" and not tracing and not torch.compiler.is_compiling()


def layout_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of a dense tensor (B, C, *S); contiguous if it has none."""
    channels_last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return channels_last if x.is_contiguous(memory_format=channels_last) else torch.contiguous_format


class _BiasGradient(torch.autograd.Function):
    """Pass on a tensor to which `bias` has been added, and give the bias its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:  # (B, C, *S), (C)
        ctx.dtype = bias.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if not ctx.needs_input_grad[1]:
            return grad, None
        # Sample by sample: sums of bf16 come back as bf16, their total is made in the bias's own dtype.
        sums = torch.stack([sample.flatten(1).sum(1) for sample in grad])
        return grad, sums.to(ctx.dtype).sum(0)
