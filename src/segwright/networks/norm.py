"""Instance norm, alone or followed by a LeakyReLU or a sum and a LeakyReLU: which implementation computes it.

The fused Triton kernels on CUDA, where `fuse_norms` found that they work; `cpu.norm` on the CPU; torch elsewhere.

Legend: B batch, C channels, S spatial axes.
"""

from __future__ import annotations

from math import prod
from typing import Final

import torch
from torch import Tensor, nn

from segwright.networks.cpu.convolution import is_eager_cpu
from segwright.networks.cpu.norm import IDENTITY_SLOPE, sample_norm
from segwright.networks.gpu.fused_norm import fused_norm
from segwright.networks.gpu.self_check import works_on

_MAX_SAMPLE: Final = 2**31
"""Values of a sample from which on the fused kernels, which count in 32 bits, are not used."""


class ChannelsLastInstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """`nn.InstanceNorm`, faster for channels-last images on the CPU and on CUDA.

    Attributes:
        may_fuse: whether `fuse_norms` may choose the fused kernels.
        fused_for: device and dtype of the images for which the fused kernels are used; see `fuse_norms`.
    """

    may_fuse = True
    fused_for: tuple[torch.device, torch.dtype] | None = None

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S)
        """Normalise each channel of each sample."""
        if is_fused(self, x):
            return fused_norm(x, self.weight, self.bias, None, self.eps, IDENTITY_SLOPE)
        if _is_sample_wise(self, x):
            return sample_norm(x, self, IDENTITY_SLOPE)
        return super().forward(x)


class InstanceNorm2d(ChannelsLastInstanceNorm, nn.InstanceNorm2d):
    """Drop-in `nn.InstanceNorm2d`."""


class InstanceNorm3d(ChannelsLastInstanceNorm, nn.InstanceNorm3d):
    """Drop-in `nn.InstanceNorm3d`."""


def norm_leaky_relu(norm: ChannelsLastInstanceNorm, x: Tensor, slope: float) -> Tensor:
    """Return `leaky_relu(norm(x), slope)`.

    Args:
        norm: the norm layer.
        x: (B, C, *S); without gradients it may be overwritten.
        slope: negative slope; on the CPU the fused version needs it to be positive.
    """
    if is_fused(norm, x):
        return fused_norm(x, norm.weight, norm.bias, None, norm.eps, slope)
    if slope > 0 and _is_sample_wise(norm, x):
        return sample_norm(x, norm, slope, in_place=True)
    return nn.functional.leaky_relu(norm(x), slope, inplace=True)


def norm_add_leaky_relu(norm: ChannelsLastInstanceNorm, x: Tensor, residual: Tensor, slope: float) -> Tensor:
    """Return `leaky_relu(norm(x) + residual, slope)`; slope 1 for no LeakyReLU.

    Args:
        norm: the norm layer.
        x: (B, C, *S).
        residual: like `x`.
        slope: negative slope.
    """
    # Below a slope of 0 the output does not show the sign that the fused backward pass needs.
    if slope >= 0 and is_fused(norm, x) and (residual.shape, residual.dtype) == (x.shape, x.dtype):
        return fused_norm(x, norm.weight, norm.bias, residual, norm.eps, slope)
    out: Tensor = norm(x) + residual
    return out if slope == IDENTITY_SLOPE else nn.functional.leaky_relu(out, slope, inplace=True)


def fuse_norms(network: nn.Module, dtype: torch.dtype | None) -> bool:
    """Use the fused kernels for the instance norms of a network, where they work on its device; return whether they do.

    Args:
        network: on its device.
        dtype: of the images between its layers; None: use torch's own norm.
    """
    norms = [module for module in network.modules() if isinstance(module, ChannelsLastInstanceNorm) and module.may_fuse]
    device = next((parameter.device for parameter in network.parameters()), None)
    images = None if device is None or dtype is None else (device, dtype)
    if not norms or images is None or not works_on(*images):
        images = None
    for norm in norms:
        norm.fused_for = images
    return images is not None


def forbid_fused_norms(network: nn.Module) -> None:
    """Never use the fused kernels for a network, wherever it is moved."""
    for module in network.modules():
        if isinstance(module, ChannelsLastInstanceNorm):
            module.may_fuse, module.fused_for = False, None


def has_fused_norms(network: nn.Module) -> bool:
    """Return whether the instance norms of a network use the fused kernels."""
    first = next((module for module in network.modules() if isinstance(module, ChannelsLastInstanceNorm)), None)
    return first is not None and first.fused_for is not None


def is_fused(norm: ChannelsLastInstanceNorm, x: Tensor) -> bool:
    """Return whether the fused kernels compute this norm; invalid input is left to torch, which raises."""
    if norm.fused_for is None or norm.fused_for != (x.device, x.dtype):
        return False
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return _is_valid(norm, x) and prod(x.shape[1:]) < _MAX_SAMPLE and not tracing


def _is_sample_wise(norm: ChannelsLastInstanceNorm, x: Tensor) -> bool:
    """Return whether `cpu.norm` computes this norm; invalid input is left to torch, which raises."""
    return is_eager_cpu(x) and x.dtype in {torch.float32, torch.bfloat16, torch.float64} and _is_valid(norm, x)


def _is_valid(norm: ChannelsLastInstanceNorm, x: Tensor) -> bool:
    return (
        x.ndim in {4, 5}
        and len(x) > 0
        and x.shape[1] == norm.num_features
        and prod(x.shape[2:]) > 1
        and not norm.track_running_stats
    )
