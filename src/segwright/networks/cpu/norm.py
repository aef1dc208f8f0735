"""Instance norm that is fast on the CPU in channels-last, alone or fused with the LeakyReLU that follows it.

torch computes instance norm as a batch norm over a (1, B*C, *S) view, which channels-last tensors do not have: they are
copied to contiguous and back, forwards and backwards. Here each sample is one batch norm of its own, in the layout it
has; a sample fits the cache, so the LeakyReLU that follows finds it there.

Legend: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import wrap_torch_function

from segwright.networks.cpu.convolution import layout_of

IDENTITY_SLOPE = 1.0


@wrap_torch_function(lambda x, norm, slope, in_place=False: (x,))  # `CpuKernelMode` overrides it
def sample_norm(x: Tensor, norm: _InstanceNorm, slope: float, in_place: bool = False) -> Tensor:
    """Return `leaky_relu(norm(x), slope)`, slope 1 for no LeakyReLU; `x` (B, C, *S) may be lost if `in_place`."""
    if not torch.is_grad_enabled():
        return _normalize(x, norm.weight, norm.bias, norm.eps, slope, in_place=in_place)[0]
    out: Tensor = _SampleNorm.apply(x, norm.weight, norm.bias, norm.eps, slope)  # type: ignore[no-untyped-call]
    return out


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, *, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the LeakyReLU of the norm of `x` (B, C, *S), channels-last, and mean and inverse deviation (2, B, C)."""
    layout = layout_of(x)
    x = x.contiguous(memory_format=layout)
    out = x if in_place else torch.empty_like(x, memory_format=layout)
    stats = torch.empty((2, *x.shape[:2]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    for index in range(len(x)):
        sample, target = x[index : index + 1], out[index : index + 1]
        torch.ops.aten.native_batch_norm.out(
            sample, weight, bias, None, None, True, 0.0, eps,
            out=target, save_mean=stats[0, index], save_invstd=stats[1, index],
        )  # fmt: skip
        if slope != IDENTITY_SLOPE:
            torch.ops.aten.leaky_relu_(target, slope)
    return out, stats


class _SampleNorm(torch.autograd.Function):
    """One batch norm per sample, then LeakyReLU in place; slope 1 means none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float) -> Tensor:
        x = x.contiguous(memory_format=layout_of(x))
        out, stats = _normalize(x, weight, bias, eps, slope)
        ctx.save_for_backward(x, weight, out if slope != IDENTITY_SLOPE else None, stats)
        ctx.eps, ctx.slope, ctx.layout = eps, slope, layout_of(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out, stats = ctx.saved_tensors
        grad = grad.contiguous(memory_format=ctx.layout)
        mask = list(ctx.needs_input_grad[:3])
        grad_x = torch.empty_like(x, memory_format=ctx.layout) if mask[0] else None
        sums: list[tuple[Tensor, Tensor]] = []
        for index in range(len(x)):
            part = slice(index, index + 1)
            upstream = grad[part]
            if out is not None:
                # The output's sign is its input's, since the slope is positive.
                upstream = torch.ops.aten.leaky_relu_backward(upstream, out[part], ctx.slope, True)
            grad_sample, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                upstream, x[part], weight, None, None, stats[0, index], stats[1, index], True, ctx.eps, mask
            )
            if grad_x is not None:
                grad_x[part] = grad_sample
            sums.append((grad_weight, grad_bias))
        grad_weight = torch.stack([pair[0] for pair in sums]).sum(0) if mask[1] else None
        grad_bias = torch.stack([pair[1] for pair in sums]).sum(0) if mask[2] else None
        return grad_x, grad_weight, grad_bias, None, None
