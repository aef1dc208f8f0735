"""Use the compiled CPU kernels for the layers of any network, in inference mode.

Within `CpuKernelMode` every torch function call is dispatched here first (see `torch.overrides.TorchFunctionMode`),
and so is every call of our layers decorated with `wrap_torch_function`. The kernels compute the layers that they
support; torch computes everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import unwrap
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segwright.networks.blocks import ConvBlock, apply_blocks, apply_decoder_blocks, has_hooks
from segwright.networks.cpu import direct, kernels
from segwright.networks.cpu.convolution import (
    conv_of_concat,
    is_eager_cpu,
    is_plain_conv,
    is_plain_upsampling,
    upsample_by,
)
from segwright.networks.cpu.library import library
from segwright.networks.cpu.norm import IDENTITY_SLOPE, sample_norm
from segwright.networks.cpu.upsampling import upsample_concat_conv
from segwright.networks.norm import ChannelsLastInstanceNorm, norm_leaky_relu

Result: TypeAlias = Tensor | None
"""The output of a layer; None where torch has to compute it."""


class CpuKernelMode(TorchFunctionMode):
    """A context in which the compiled kernels compute the layers that they support; without gradients.

    It holds for the thread that enters it. It keeps transformed weights, so entering the same object again saves time;
    several threads may share one.

    Args:
        fp16: compute convolutions in float16 where the processor is fast at it.
    """

    def __init__(self, *, fp16: bool = False) -> None:
        super().__init__()
        self.fp16 = fp16
        self._cache = kernels.WinogradWeightCache(fp16=fp16)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute one function of torch, or one composite layer of ours."""
        kwargs = kwargs or {}
        result = _HANDLERS[func](self._cache, *args, **kwargs) if func in _HANDLERS else None
        if result is not None:
            return result
        if func in _COMPOSITES:
            with self:  # torch disables the mode in here; re-enter it for the inner layers
                return _COMPOSITES[func](*args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    cache: kernels.WinogradWeightCache,
    input: Tensor,  # noqa: A002 (as torch calls it)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Result:
    if not _are_supported(input, weight, bias) or groups != 1 or not _keeps_shape(weight, stride, padding, dilation):
        return None
    steps = _sizes(stride, weight)
    if direct.supports_pointwise(weight, input, steps):
        return direct.convolve_pointwise(input, weight, bias)
    if direct.supports_few_channels(weight, input, steps):
        return direct.convolve_few_channels(input, weight, bias)
    if kernels.supports(weight, input, [input.shape[1]], steps, cache):
        return kernels.convolve([input], weight, bias, steps, cache)
    return None


def _transposed_convolution(
    cache: kernels.WinogradWeightCache | None,
    input: Tensor,  # noqa: A002 (as torch calls it)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Result:
    if not _are_supported(input, weight) or not _are_plain([bias], torch.float32) or groups != 1:
        return None
    if bias is not None and bias.shape != weight.shape[1:2]:
        return None
    if {*_sizes(padding, weight), *_sizes(output_padding, weight)} != {0} or {*_sizes(dilation, weight)} != {1}:
        return None
    if not direct.supports_upsampling(weight, input, _sizes(stride, weight)):
        return None
    return direct.upsample(input, weight, bias)


def _conv_of_concat(cache: kernels.WinogradWeightCache, conv: nn.Module, first: Tensor, second: Tensor) -> Result:
    channels = [first.shape[1], second.shape[1]]
    if not _are_supported(first) or not _is_winograd_conv(conv, second, channels, cache):
        return None
    return kernels.convolve([first, second], conv.weight, conv.bias, tuple(conv.stride), cache)


def _upsample_concat_conv(
    cache: kernels.WinogradWeightCache, upsample: nn.Module, conv: nn.Module, x: Tensor, skip: Tensor
) -> Result:
    """Up-sample first: merged with the convolution it would take more multiplications than the kernel."""
    if not is_plain_upsampling(upsample) or not _are_supported(x, upsample.weight):
        return None
    if not _is_winograd_conv(conv, skip, [upsample.out_channels, skip.shape[1]], cache):
        return None
    return kernels.convolve([_upsampled(upsample, x), skip], conv.weight, conv.bias, tuple(conv.stride), cache)


@dataclass(frozen=True)
class _Block:
    """The layers of a convolution block that the kernels can compute."""

    conv: nn.Conv2d | nn.Conv3d
    norm: ChannelsLastInstanceNorm
    slope: float

    @classmethod
    def of(cls, block: nn.Module) -> _Block | None:
        """Return the layers of `block`; None where there is one that the kernels do not support."""
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

    def supports_winograd(self, image: Tensor, channels: Sequence[int], cache: kernels.WinogradWeightCache) -> bool:
        """Return whether Winograd's kernels compute this block for images like `image`.

        Not for one output voxel: its instance norm is undefined.
        """
        voxels = image[0, 0].numel()  # of which a stride may leave one
        return voxels > 2 ** (image.ndim - 2) and _is_winograd_conv(self.conv, image, channels, cache)

    def supports_direct(self, image: Tensor) -> bool:
        """Return whether the direct kernel computes this block for images like `image`, with few channels."""
        return (
            image[0, 0].numel() > 1
            and _is_supported_conv(self.conv, image)
            and direct.supports_few_channels(self.conv.weight, image, _sizes(self.conv.stride, self.conv.weight))
        )


def _blocks(cache: kernels.WinogradWeightCache, blocks: Sequence[nn.Module], x: Tensor) -> Result:
    layers = _supported_blocks(blocks, x)
    return None if layers is None else _fused(cache, layers, [x])


def _decoder_blocks(
    cache: kernels.WinogradWeightCache,
    blocks: Sequence[nn.Module],
    upsample: nn.Module,
    x: Tensor,
    skip: Tensor,
    head: nn.Module | None = None,
) -> Result:
    layers = _supported_blocks(blocks, x)
    if layers is None or not is_plain_upsampling(upsample) or not _are_supported(x, upsample.weight):
        return None
    if not layers[0].supports_winograd(skip, [upsample.out_channels, skip.shape[1]], cache):
        return None
    return _fused(cache, layers, [_upsampled(upsample, x), skip], head)


def _supported_blocks(blocks: Sequence[nn.Module], x: Tensor) -> list[_Block] | None:
    """Return the layers of all `blocks`; None if the kernels do not support one of them, or if one has hooks."""
    if not _are_supported(x) or any(map(has_hooks, [blocks] if isinstance(blocks, nn.Module) else blocks)):
        return None
    layers = [block for block in map(_Block.of, blocks) if block is not None]
    return layers if len(layers) == len(blocks) else None


def _fused(
    cache: kernels.WinogradWeightCache,
    blocks: Sequence[_Block],
    images: Sequence[Tensor | kernels.Normalized],
    head: nn.Module | None = None,
) -> Tensor:
    """Apply convolution blocks to one image, or to two concatenated along their channels, and then a head if any.

    The statistics of each norm are computed while its convolution writes, and it is applied while the next one reads.
    """
    for block, following in zip(blocks, (*blocks[1:], None), strict=True):
        conv, norm = block.conv, kernels.Norm(block.norm.weight, block.norm.bias, block.norm.eps, block.slope)
        values = [kernels.tensor_of(image) for image in images]
        if block.supports_winograd(values[0], [each.shape[1] for each in values], cache):
            images = [kernels.convolve_and_norm(images, conv.weight, conv.bias, norm, tuple(conv.stride), cache)]
            continue
        if block.supports_direct(values[0]):
            images = [direct.convolve_few_channels_and_norm(_applied(images[0]), conv.weight, conv.bias, norm)]
            continue
        out = conv(_applied(images[0]))
        if following is not None and following.supports_winograd(out, [out.shape[1]], cache):
            images = [kernels.compute_norm(out, norm)]
        else:
            with CpuKernelMode():
                images = [norm_leaky_relu(block.norm, out, block.slope)]
    if head is None:
        return _applied(images[0])
    if _is_supported_head(head, kernels.tensor_of(images[0])) and not has_hooks(head):
        return direct.convolve_pointwise(images[0], head.weight, head.bias)
    logits: Tensor = head(_applied(images[0]))
    return logits


def _upsampled(upsample: nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor) -> Tensor:
    options = (upsample.stride, upsample.padding, upsample.output_padding, upsample.groups, upsample.dilation)
    result = _transposed_convolution(None, x, upsample.weight, upsample.bias, *options)
    return upsample_by(upsample, x) if result is None else result


def _applied(image: Tensor | kernels.Normalized) -> Tensor:
    return image if isinstance(image, Tensor) else image.apply_inplace()


def _is_winograd_conv(
    conv: nn.Module, image: Tensor, channels: Sequence[int], cache: kernels.WinogradWeightCache
) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether Winograd's kernels compute `conv` for images like `image` with so many `channels`."""
    return _is_supported_conv(conv, image) and kernels.supports(
        conv.weight, image, channels, _sizes(conv.stride, conv.weight), cache
    )


def _is_supported_head(conv: nn.Module, image: Tensor) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether the kernels compute the 1x1 convolution `conv` of `image`."""
    return _is_supported_conv(conv, image) and direct.supports_pointwise(
        conv.weight, image, _sizes(conv.stride, conv.weight)
    )


def _is_supported_conv(conv: nn.Module, image: Tensor) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Return whether `conv` is a plain torch convolution whose padding, groups and dtypes the kernels support."""
    return (
        is_plain_conv(conv)
        and _are_supported(image, conv.weight, conv.bias)
        and (conv.padding_mode, conv.groups) == ("zeros", 1)
        and _keeps_shape(conv.weight, conv.stride, conv.padding, conv.dilation)
    )


def _sample_norm(
    cache: kernels.WinogradWeightCache, x: Tensor, norm: ChannelsLastInstanceNorm, slope: float, in_place: bool = False
) -> Result:
    if not _can_compute(x) or x.shape[1] % kernels.LANES:
        return None
    if not _are_plain([x], torch.float32, torch.bfloat16) or not _are_plain([norm.weight, norm.bias], torch.float32):
        return None
    return kernels.instance_norm(x, kernels.Norm(norm.weight, norm.bias, norm.eps, slope), in_place=in_place)


def _keeps_shape(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    """Return whether a convolution has no dilation, and padding that keeps the shape, strides aside."""
    width = tuple(size // 2 for size in weight.shape[2:])
    if padding == "same":
        return set(_sizes(stride, weight)) == {1} and set(_sizes(dilation, weight)) == {1}
    return _sizes(padding, weight) == width and set(_sizes(dilation, weight)) == {1}


def _sizes(sizes: Any, weight: Tensor) -> tuple[int, ...]:
    """Return one size for each axis; torch also accepts one for all."""
    each = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    return each * (weight.ndim - 2) if len(each) == 1 else each


def _are_supported(image: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> bool:
    """Return whether the kernels convolve these tensors: in float32 and without torch's autocast."""
    return (
        _can_compute(image)
        and not torch.is_autocast_enabled("cpu")
        and _are_plain([image, weight, bias], torch.float32)
        and (weight is None or bias is None or bias.shape == weight.shape[:1])
    )


def _are_plain(tensors: Sequence[Tensor | None], *dtypes: torch.dtype) -> bool:
    """Return whether all tensors but None are dense, in memory and of one of `dtypes`; a subclass is not plain."""
    return all(
        type(tensor) in {Tensor, nn.Parameter}
        and tensor.layout == torch.strided
        and tensor.dtype in dtypes
        and tensor.device.type == "cpu"
        for tensor in tensors
        if tensor is not None
    )


def _can_compute(image: Tensor) -> bool:
    """Return whether there are kernels, and the network runs without gradients and is not traced."""
    return is_eager_cpu(image) and not torch.is_grad_enabled() and library() is not None


_COMPOSITES: Final[Mapping[Callable[..., Any], Callable[..., Tensor]]] = MappingProxyType(
    {function: unwrap(function) for function in (apply_blocks, apply_decoder_blocks)}
)
"""Functions that call several layers, and what they do outside of this mode."""

_HANDLERS: Final[Mapping[Callable[..., Any], Callable[..., Result]]] = MappingProxyType(
    {
        torch.conv2d: _convolution,
        torch.conv3d: _convolution,
        torch.conv_transpose2d: _transposed_convolution,
        torch.conv_transpose3d: _transposed_convolution,
        conv_of_concat: _conv_of_concat,
        upsample_concat_conv: _upsample_concat_conv,
        sample_norm: _sample_norm,
        apply_blocks: _blocks,
        apply_decoder_blocks: _decoder_blocks,
    }
)
