"""Faster layers for a network that only predicts, whoever wrote it.

Within `FastLayers` torch asks here before it computes a convolution or an instance norm, and so do the layers of our
own that stand for several of torch's. The compiled kernels compute what they are made for; all else is as without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segwright.networks.blocks import ConvBlock, computed_together
from segwright.networks.cpu import direct, kernels
from segwright.networks.cpu.convolution import conv_pair, is_eager_cpu, is_plain_conv, is_plain_upsampling, upsample_by
from segwright.networks.cpu.library import library, rejoin_freed_memory
from segwright.networks.cpu.norm import (
    IDENTITY_SLOPE,
    ChannelsLastInstanceNorm,
    norm_leaky_relu,
    sample_norm,
)
from segwright.networks.cpu.upsampling import upsample_conv_pair

Answer: TypeAlias = Tensor | None
"""The result of a layer; None where torch is to compute it."""


class FastLayers(TorchFunctionMode):
    """A context, for the thread that enters it, in which `kernels` computes what it can; without gradients.

    Used again, it still knows the transformed weights of layers; several threads may use one.

    Args:
        in_halves: compute convolutions in float16 where the processor is fast at it.
    """

    def __init__(self, *, in_halves: bool = False) -> None:
        super().__init__()
        self.in_halves = in_halves
        self._known = kernels.Points(in_halves=in_halves)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute one function of torch, or one layer of ours that asks as torch's functions do."""
        rejoin_freed_memory()
        kwargs = kwargs or {}
        answer = _ANSWERS[func](self._known, *args, **kwargs) if func in _ANSWERS else None
        return func(*args, **kwargs) if answer is None else answer


def _convolution(
    known: kernels.Points,
    input: Tensor,  # noqa: A002 (as torch calls it)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Answer:
    if not _are_ours(input, weight, bias) or groups != 1 or not _pads_evenly(weight, stride, padding, dilation):
        return None
    steps = _sizes(stride, weight)
    if direct.suits_voxels(weight, input, steps):
        return direct.convolve_voxels(input, weight, bias)
    if direct.suits_few(weight, input, steps):
        return direct.convolve_few(input, weight, bias)
    if kernels.suits(weight, input, [input.shape[1]], steps, known):
        return kernels.convolve([input], weight, bias, steps, known)
    return None


def _upsampling(
    known: kernels.Points | None,
    input: Tensor,  # noqa: A002 (as torch calls it)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Answer:
    if not _are_ours(input, weight) or not _are_plain([bias], torch.float32) or groups != 1:
        return None
    if bias is not None and bias.shape != weight.shape[1:2]:
        return None
    if {*_sizes(padding, weight), *_sizes(output_padding, weight)} != {0} or {*_sizes(dilation, weight)} != {1}:
        return None
    if not direct.suits_upsampling(weight, input, _sizes(stride, weight)):
        return None
    return direct.upsample(input, weight, bias)


def _conv_pair(known: kernels.Points, conv: nn.Module, first: Tensor, second: Tensor) -> Answer:
    if not _are_ours(first) or not _is_for_kernel(conv, second, [first.shape[1], second.shape[1]], known):
        return None
    return kernels.convolve([first, second], conv.weight, conv.bias, tuple(conv.stride), known)


def _upsample_conv_pair(known: kernels.Points, upsample: nn.Module, conv: nn.Module, x: Tensor, skip: Tensor) -> Answer:
    """Up-sample first: merged with the convolution it would take more multiplications than the kernel."""
    if not is_plain_upsampling(upsample) or not _are_ours(x, upsample.weight):
        return None
    if not _is_for_kernel(conv, skip, [upsample.out_channels, skip.shape[1]], known):
        return None
    return kernels.convolve([_upsampled(upsample, x), skip], conv.weight, conv.bias, tuple(conv.stride), known)


@dataclass(frozen=True)
class _Block:
    """What a convolution block consists of."""

    conv: nn.Conv2d | nn.Conv3d
    norm: ChannelsLastInstanceNorm
    slope: float

    @classmethod
    def of(cls, block: nn.Module) -> _Block | None:
        """Return the parts of `block`; None where there are others."""
        if type(block) is not ConvBlock or block.dropout is not None or block.nonlin_first:
            return None
        conv, norm, nonlin = block.conv, block.norm, block.nonlin
        if not is_plain_conv(conv) or not isinstance(norm, ChannelsLastInstanceNorm):
            return None
        if norm.num_features != len(conv.weight) or norm.track_running_stats:
            return None
        if not _are_plain([norm.weight, norm.bias], torch.float32):
            return None
        if nonlin is None:
            return cls(conv, norm, IDENTITY_SLOPE)
        if not isinstance(nonlin, nn.LeakyReLU) or nonlin.negative_slope <= 0:
            return None
        return cls(conv, norm, nonlin.negative_slope)

    def can_use_kernel(self, image: Tensor, channels: Sequence[int], known: kernels.Points) -> bool:
        """Return whether the kernels compute this for images like `image`; a single voxel has no norm."""
        voxels = image[0, 0].numel()  # of which a stride may leave one
        return voxels > 2 ** (image.ndim - 2) and _is_for_kernel(self.conv, image, channels, known)

    def can_be_direct(self, image: Tensor) -> bool:
        """Return whether the kernels compute this as it is, for images like `image` with few channels."""
        return (
            image[0, 0].numel() > 1
            and _is_even(self.conv, image)
            and direct.suits_few(self.conv.weight, image, _sizes(self.conv.stride, self.conv.weight))
        )


def _computed_together(
    known: kernels.Points,
    modules: Sequence[nn.Module],
    x: Tensor,
    upsample: nn.Module | None = None,
    skip: Tensor | None = None,
    head: nn.Module | None = None,
) -> Answer:
    """Find each norm while its convolution is written, and apply it while the next one reads."""
    if not _are_ours(x) or any(map(_is_watched, [modules] if isinstance(modules, nn.Module) else modules)):
        return None
    blocks = [block for block in map(_Block.of, modules) if block is not None]
    if len(blocks) < len(modules):
        return None
    images: list[Tensor | kernels.Normalised] = [x]
    if skip is not None:
        if not is_plain_upsampling(upsample) or not _are_ours(x, upsample.weight):
            return None
        if not blocks[0].can_use_kernel(skip, [upsample.out_channels, skip.shape[1]], known):
            return None
        images = [_upsampled(upsample, x), skip]
    for block, following in zip(blocks, (*blocks[1:], None), strict=True):
        conv, norm = block.conv, kernels.Norm(block.norm.weight, block.norm.bias, block.norm.eps, block.slope)
        values = [kernels.values_of(image) for image in images]
        if block.can_use_kernel(values[0], [each.shape[1] for each in values], known):
            images = [kernels.convolve_and_norm(images, conv.weight, conv.bias, norm, tuple(conv.stride), known)]
            continue
        if block.can_be_direct(values[0]):
            images = [direct.convolve_few_and_norm(_applied(images[0]), conv.weight, conv.bias, norm)]
            continue
        out = conv(_applied(images[0]))
        if following is not None and following.can_use_kernel(out, [out.shape[1]], known):
            images = [kernels.find_norm(out, norm)]
        else:
            with FastLayers():
                images = [norm_leaky_relu(block.norm, out, block.slope)]
    if head is None:
        return _applied(images[0])
    if _is_head(head, kernels.values_of(images[0])) and not _is_watched(head):
        return direct.convolve_voxels(images[0], head.weight, head.bias)
    logits: Tensor = head(_applied(images[0]))
    return logits


def _upsampled(upsample: nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor) -> Tensor:
    asked = (upsample.stride, upsample.padding, upsample.output_padding, upsample.groups, upsample.dilation)
    answer = _upsampling(None, x, upsample.weight, upsample.bias, *asked)
    return upsample_by(upsample, x) if answer is None else answer


def _applied(image: Tensor | kernels.Normalised) -> Tensor:
    return image if isinstance(image, Tensor) else image.applied()


def _is_watched(module: nn.Module) -> bool:
    """Return whether somebody wants to see what a module or a part of it computes."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _is_for_kernel(
    conv: nn.Module, image: Tensor, channels: Sequence[int], known: kernels.Points
) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether the kernels compute `conv` for images like `image` with so many `channels`."""
    return _is_even(conv, image) and kernels.suits(
        conv.weight, image, channels, _sizes(conv.stride, conv.weight), known
    )


def _is_head(conv: nn.Module, image: Tensor) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether the kernels compute `conv` for each voxel of `image`."""
    return _is_even(conv, image) and direct.suits_voxels(conv.weight, image, _sizes(conv.stride, conv.weight))


def _is_even(conv: nn.Module, image: Tensor) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether `conv` pads evenly and is, like the image, what the kernels compute with."""
    return (
        is_plain_conv(conv)
        and _are_ours(image, conv.weight, conv.bias)
        and (conv.padding_mode, conv.groups) == ("zeros", 1)
        and _pads_evenly(conv.weight, conv.stride, conv.padding, conv.dilation)
    )


def _sample_norm(
    known: kernels.Points, x: Tensor, norm: ChannelsLastInstanceNorm, slope: float, in_place: bool = False
) -> Answer:
    if not _can_compute(x) or x.shape[1] % kernels.LANES:
        return None
    if not _are_plain([x], torch.float32, torch.bfloat16) or not _are_plain([norm.weight, norm.bias], torch.float32):
        return None
    return kernels.instance_norm(x, kernels.Norm(norm.weight, norm.bias, norm.eps, slope), in_place=in_place)


def _pads_evenly(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Return whether a convolution pads as much as its kernel needs, and skips nothing within it."""
    width = tuple(size // 2 for size in weight.shape[2:])
    if padding == "same":
        return set(_sizes(stride, weight)) == {1} and set(_sizes(dilation, weight)) == {1}
    return _sizes(padding, weight) == width and set(_sizes(dilation, weight)) == {1}


def _sizes(sizes: Any, weight: Tensor) -> tuple[int, ...]:
    """Return one size for each axis; torch takes one for all, too."""
    each = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    return each * (weight.ndim - 2) if len(each) == 1 else each


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
    return is_eager_cpu(image) and not torch.is_grad_enabled() and library() is not None


_ANSWERS: Final[Mapping[Callable[..., Any], Callable[..., Answer]]] = MappingProxyType(
    {
        torch.conv2d: _convolution,
        torch.conv3d: _convolution,
        torch.conv_transpose2d: _upsampling,
        torch.conv_transpose3d: _upsampling,
        conv_pair: _conv_pair,
        upsample_conv_pair: _upsample_conv_pair,
        sample_norm: _sample_norm,
        computed_together: _computed_together,
    }
)
