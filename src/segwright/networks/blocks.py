"""Building blocks of the U-Nets: convolution blocks, stacks of them, and residual blocks.

Legend: B batch, C channels, S spatial axes. Names of sub-modules are those of nnU-Net's dynamic networks
(nnU-Net behaviour 7.2), so that its weights load; `checkpoint.py` handles their aliases (`all_modules.*`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from segwright.networks.cpu.norm import IDENTITY_SLOPE
from segwright.networks.cpu.upsampling import upsample_concat_conv
from segwright.networks.norm import ChannelsLastInstanceNorm, norm_add_leaky_relu, norm_leaky_relu

Size = tuple[int, ...]
ConvClass = type[nn.Conv2d] | type[nn.Conv3d]

DIMS: Final[dict[type[nn.Module], int]] = {nn.Conv2d: 2, nn.Conv3d: 3}
TRANSPOSED: Final[dict[int, type[nn.Module]]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
AVERAGE_POOL: Final[dict[int, type[nn.Module]]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Options shared by all convolution blocks of a network."""

    conv_op: type[nn.Module]
    conv_bias: bool = False
    norm_op: type[nn.Module] | None = None
    norm_op_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dropout_op: type[nn.Module] | None = None
    dropout_op_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nonlin: type[nn.Module] | None = None
    nonlin_kwargs: Mapping[str, Any] = field(default_factory=dict)
    nonlin_first: bool = False

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return DIMS[self.conv_op]

    def make_nonlin(self) -> nn.Module | None:
        """Return a new non-linearity, or None."""
        return None if self.nonlin is None else self.nonlin(**self.nonlin_kwargs)


class ConvBlock(nn.Module):
    """Convolution, dropout, norm, non-linearity; each but the first optional.

    Padding is (kernel - 1) // 2 per axis.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: Size, options: LayerOptions) -> None:
        super().__init__()
        padding = tuple((size - 1) // 2 for size in kernel)
        self.conv = options.conv_op(
            in_channels, out_channels, kernel, stride=stride, padding=padding, bias=options.conv_bias
        )
        self.dropout = None if options.dropout_op is None else options.dropout_op(**options.dropout_op_kwargs)
        self.norm = None if options.norm_op is None else options.norm_op(out_channels, **options.norm_op_kwargs)
        self.nonlin = options.make_nonlin()
        self.nonlin_first = options.nonlin_first

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C', *S')
        """Apply the block."""
        return self._after_conv(self.conv(x))

    def forward_up(self, upsample: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        """Apply the block to the up-sampled `x` and the skip, concatenated along the channels."""
        return self._after_conv(upsample_concat_conv(upsample, self.conv, x, skip))

    def fuses_sum(self, nonlin: nn.Module | None) -> bool:
        """Return whether `forward_sum` applies: one fused kernel computes norm, sum and the LeakyReLU `nonlin`."""
        return (
            isinstance(self.norm, ChannelsLastInstanceNorm)
            and self.norm.fused_for is not None
            and (nonlin is None or isinstance(nonlin, nn.LeakyReLU))
            and self.dropout is None
            and self.nonlin is None
            and not has_hooks(self)
        )

    def forward_sum(self, x: Tensor, residual: Tensor, nonlin: nn.Module | None) -> Tensor:
        """Apply the block, add `residual`, and apply `nonlin`; only where `fuses_sum(nonlin)`."""
        assert isinstance(self.norm, ChannelsLastInstanceNorm)
        slope = nonlin.negative_slope if isinstance(nonlin, nn.LeakyReLU) else IDENTITY_SLOPE
        return norm_add_leaky_relu(self.norm, self.conv(x), residual, slope)

    def _after_conv(self, x: Tensor) -> Tensor:
        if self.dropout is not None:
            x = self.dropout(x)
        if self.nonlin_first:
            x = x if self.nonlin is None else self.nonlin(x)
            return x if self.norm is None else self.norm(x)
        if isinstance(self.norm, ChannelsLastInstanceNorm) and isinstance(self.nonlin, nn.LeakyReLU):
            return norm_leaky_relu(self.norm, x, self.nonlin.negative_slope)
        x = x if self.norm is None else self.norm(x)
        return x if self.nonlin is None else self.nonlin(x)

    def alias_indices(self) -> dict[str, int]:
        """Return the index of `conv` and `norm` in nnU-Net's container `all_modules` (nnU-Net behaviour 7.2)."""
        after_conv = 1 + (self.dropout is not None)
        return {"conv": 0, "norm": after_conv + (self.nonlin_first and self.nonlin is not None)}


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module or a part of it has forward hooks, which must see what it computes."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@wrap_torch_function(lambda blocks, x: (x,))
def apply_blocks(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply convolution blocks one after another.

    It is a function so that `networks.cpu.dispatch.CpuKernelMode` can override it, as it does torch's functions: its
    kernels compute the norm of one block and the convolution of the next in one pass over the image.

    Args:
        blocks: an `nn.Sequential`, or modules.
        x: (B, C, *S).
    """
    if isinstance(blocks, nn.Module):
        out: Tensor = blocks(x)  # a module's hooks are called
        return out
    for block in blocks:
        x = block(x)
    return x


@wrap_torch_function(lambda blocks, upsample, x, skip, head=None: (x,))
def apply_decoder_blocks(
    blocks: nn.Sequential, upsample: nn.Module, x: Tensor, skip: Tensor, head: nn.Module | None = None
) -> Tensor:
    """Up-sample, concatenate the skip, and apply convolution blocks and a head; overridden like `apply_blocks`.

    Args:
        blocks: convolution blocks.
        upsample: transposed convolution.
        x: (B, C, *S) on the coarse grid.
        skip: (B, C', *S') on the fine grid.
        head: the last layer of the network, if any.
    """
    first = blocks[0]
    assert isinstance(first, ConvBlock)
    out: Tensor = blocks[1:](first.forward_up(upsample, x, skip))
    return out if head is None else head(out)


class ConvStack(nn.Module):
    """Convolution blocks in a row; only the first one has the stride and the input's channels."""

    def __init__(
        self,
        num_blocks: int,
        in_channels: int,
        out_channels: int,
        kernel: Size,
        stride: Size,
        options: LayerOptions,
    ) -> None:
        super().__init__()
        unit = (1,) * len(stride)
        self.convs = nn.Sequential(
            *(
                ConvBlock(
                    in_channels if index == 0 else out_channels,
                    out_channels,
                    kernel,
                    stride if index == 0 else unit,
                    options,
                )
                for index in range(num_blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks."""
        return apply_blocks(self.convs, x)

    def forward_up(self, upsample: nn.Module, x: Tensor, skip: Tensor, head: nn.Module | None = None) -> Tensor:
        """Apply all blocks, and a head if any, to the up-sampled `x` and the skip, concatenated along the channels."""
        return apply_decoder_blocks(self.convs, upsample, x, skip, head)


class BasicBlockD(nn.Module):
    """Residual block of ResNet-D: two convolution blocks, sum with the skip, non-linearity."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, stride: Size, options: LayerOptions) -> None:
        super().__init__()
        unit = (1,) * len(stride)
        self.conv1 = ConvBlock(in_channels, out_channels, kernel, stride, options)
        self.conv2 = ConvBlock(out_channels, out_channels, kernel, unit, replace(options, dropout_op=None, nonlin=None))
        self.nonlin2 = options.make_nonlin()
        self.skip = _skip(in_channels, out_channels, stride, options)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        residual = x if self.skip is None else self.skip(x)
        if self.conv2.fuses_sum(self.nonlin2):
            return self.conv2.forward_sum(self.conv1(x), residual, self.nonlin2)
        out = apply_blocks((self.conv1, self.conv2), x) + residual
        return out if self.nonlin2 is None else self.nonlin2(out)

    @property
    def last_norm(self) -> nn.Module | None:
        """The norm before the sum."""
        return self.conv2.norm


class BottleneckD(nn.Module):
    """Residual bottleneck of ResNet-D: 1x1, kernel with stride, 1x1, sum with the skip, non-linearity."""

    def __init__(
        self,
        in_channels: int,
        bottleneck_channels: int,
        out_channels: int,
        kernel: Size,
        stride: Size,
        options: LayerOptions,
    ) -> None:
        super().__init__()
        unit = (1,) * len(stride)
        bare = replace(options, dropout_op=None)
        self.conv1 = ConvBlock(in_channels, bottleneck_channels, unit, unit, bare)
        self.conv2 = ConvBlock(bottleneck_channels, bottleneck_channels, kernel, stride, options)
        self.conv3 = ConvBlock(bottleneck_channels, out_channels, unit, unit, replace(bare, nonlin=None))
        self.nonlin3 = options.make_nonlin()
        self.skip = _skip(in_channels, out_channels, stride, options)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        residual = x if self.skip is None else self.skip(x)
        if self.conv3.fuses_sum(self.nonlin3):
            return self.conv3.forward_sum(self.conv2(self.conv1(x)), residual, self.nonlin3)
        out: Tensor = self.conv3(self.conv2(self.conv1(x))) + residual
        return out if self.nonlin3 is None else self.nonlin3(out)

    @property
    def last_norm(self) -> nn.Module | None:
        """The norm before the sum."""
        return self.conv3.norm


class ResidualStack(nn.Module):
    """Residual blocks in a row; only the first one has the stride and the input's channels.

    With `bottleneck_channels` the blocks are `BottleneckD`, else `BasicBlockD`.
    """

    def __init__(
        self,
        num_blocks: int,
        in_channels: int,
        out_channels: int,
        kernel: Size,
        stride: Size,
        options: LayerOptions,
        *,
        bottleneck_channels: int | None = None,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index in range(num_blocks):
            channels = in_channels if index == 0 else out_channels
            step = stride if index == 0 else (1,) * len(stride)
            if bottleneck_channels is None:
                blocks.append(BasicBlockD(channels, out_channels, kernel, step, options))
            else:
                blocks.append(BottleneckD(channels, bottleneck_channels, out_channels, kernel, step, options))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks."""
        out: Tensor = self.blocks(x)
        return out

    def forward_up(self, upsample: nn.Module, x: Tensor, skip: Tensor, head: nn.Module | None = None) -> Tensor:
        """Apply all blocks, and a head if any, to the up-sampled `x` and the skip, concatenated along the channels."""
        out = self.forward(torch.cat((upsample(x), skip), 1))
        return out if head is None else head(out)


def _skip(in_channels: int, out_channels: int, stride: Size, options: LayerOptions) -> nn.Sequential | None:
    """Return the shortcut: average pooling where there is a stride, 1x1 projection where the channels change."""
    unit = (1,) * len(stride)
    steps: list[nn.Module] = []
    if stride != unit:
        steps.append(AVERAGE_POOL[options.dims](stride, stride))
    if in_channels != out_channels:
        bare = replace(options, conv_bias=False, dropout_op=None, nonlin=None)
        steps.append(ConvBlock(in_channels, out_channels, unit, unit, bare))
    return nn.Sequential(*steps) if steps else None
