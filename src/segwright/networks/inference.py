"""Faster layers for a network that only predicts, whoever wrote it.

Within `FastLayers` torch asks here before it computes a convolution or an instance norm, and so do the layers of our
own that stand for several of torch's. The compiled kernels compute what they are made for; all else is as without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segwright.networks import kernels
from segwright.networks.convolution import conv_pair, is_eager_cpu, upsample_by
from segwright.networks.norm import ChannelsLastInstanceNorm, sample_norm
from segwright.networks.upsampling import upsample_conv_pair

Answer: TypeAlias = Tensor | None
"""The result of a layer; None where torch is to compute it."""


class FastLayers(TorchFunctionMode):
    """A context, for the thread that enters it, in which `kernels` computes what it can; without gradients."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute one function of torch, or one layer of ours that asks as torch's functions do."""
        kwargs = kwargs or {}
        answer = _ANSWERS[func](*args, **kwargs) if func in _ANSWERS else None
        return func(*args, **kwargs) if answer is None else answer


def _convolution(
    input: Tensor,  # noqa: A002 (as torch calls it)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Answer:
    if not _are_ours(input, weight, bias) or groups != 1 or not _keeps_shape(weight, stride, padding, dilation):
        return None
    return kernels.convolve([input], weight, bias) if kernels.suits(weight, input, [input.shape[1]]) else None


def _conv_pair(conv: nn.Module, first: Tensor, second: Tensor) -> Answer:
    if not _are_ours(first) or not _is_for_pairs(conv, second, [first.shape[1], second.shape[1]]):
        return None
    return kernels.convolve([first, second], conv.weight, conv.bias)


def _upsample_conv_pair(upsample: nn.Module, conv: nn.Module, x: Tensor, skip: Tensor) -> Answer:
    """Up-sample first: merged with the convolution it would take more multiplications than the kernel."""
    if not isinstance(upsample, nn.ConvTranspose2d | nn.ConvTranspose3d) or not _are_ours(x, upsample.weight):
        return None
    if not _is_for_pairs(conv, skip, [upsample.out_channels, skip.shape[1]]):
        return None
    return kernels.convolve([upsample_by(upsample, x), skip], conv.weight, conv.bias)


def _is_for_pairs(conv: nn.Module, image: Tensor, channels: Sequence[int]) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    return (
        isinstance(conv, nn.Conv2d | nn.Conv3d)
        and _are_ours(image, conv.weight, conv.bias)
        and (conv.padding_mode, conv.groups) == ("zeros", 1)
        and _keeps_shape(conv.weight, conv.stride, conv.padding, conv.dilation)
        and kernels.suits(conv.weight, image, channels)
    )


def _sample_norm(x: Tensor, norm: ChannelsLastInstanceNorm, slope: float, in_place: bool = False) -> Answer:
    if not _can_compute(x) or x.shape[1] % kernels.LANES:
        return None
    if not _are_plain([x], torch.float32, torch.bfloat16) or not _are_plain([norm.weight, norm.bias], torch.float32):
        return None
    return kernels.instance_norm(x, norm.weight, norm.bias, norm.eps, slope, in_place=in_place)


def _keeps_shape(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Return whether a convolution visits every voxel and pads as much as its kernel needs."""
    dims = weight.ndim - 2
    steps = (stride, dilation)
    if any(tuple(step) != (1,) * len(step) if isinstance(step, Sequence) else step != 1 for step in steps):
        return False
    width = tuple(size // 2 for size in weight.shape[2:])
    return padding == "same" or (tuple(padding) if isinstance(padding, Sequence) else (padding,) * dims) == width


def _are_ours(image: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> bool:
    """Return whether the kernels convolve these tensors: in float32, whatever a precision of torch's may ask for."""
    return (
        _can_compute(image)
        and not torch.is_autocast_enabled("cpu")
        and _are_plain([image, weight, bias], torch.float32)
        and (weight is None or bias is None or bias.shape == weight.shape[:1])
    )


def _are_plain(tensors: Sequence[Tensor | None], *dtypes: torch.dtype) -> bool:
    """Return whether all tensors but None are numbers in memory, of one of `dtypes`; subclasses may be anything."""
    return all(
        type(tensor) in {Tensor, nn.Parameter}
        and tensor.layout == torch.strided
        and tensor.dtype in dtypes
        and tensor.device.type == "cpu"
        for tensor in tensors
        if tensor is not None
    )


def _can_compute(image: Tensor) -> bool:
    """Return whether there are kernels, and this is a run of the network without gradients rather than a trace."""
    return is_eager_cpu(image) and not torch.is_grad_enabled() and kernels.library() is not None


_ANSWERS: Final[Mapping[Callable[..., Any], Callable[..., Answer]]] = MappingProxyType(
    {
        torch.conv2d: _convolution,
        torch.conv3d: _convolution,
        conv_pair: _conv_pair,
        upsample_conv_pair: _upsample_conv_pair,
        sample_norm: _sample_norm,
    }
)
