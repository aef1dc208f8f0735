"""The network: depthwise convolutions with inverted bottlenecks, residual up- and downsampling, skips that are added.

Roy et al., arXiv 2303.09975, section 2 and figure 1. Written from the paper; the numbers of weights that it reports are
tested.

Legend: B batch, C channels, S spatial axes, R expansion ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segwright.networks.blocks import TRANSPOSED, ConvClass
from segwright.networks.cpu.depthwise import (
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseConvTranspose2d,
    DepthwiseConvTranspose3d,
)
from segwright.networks.norm import InstanceNorm2d, InstanceNorm3d

Size = tuple[int, ...]

CONVOLUTION: dict[int, ConvClass] = {2: nn.Conv2d, 3: nn.Conv3d}
DEPTHWISE: dict[int, ConvClass] = {2: DepthwiseConv2d, 3: DepthwiseConv3d}
DEPTHWISE_TRANSPOSED: dict[int, type[nn.Module]] = {2: DepthwiseConvTranspose2d, 3: DepthwiseConvTranspose3d}
NORM: dict[int, type[InstanceNorm2d] | type[InstanceNorm3d]] = {2: InstanceNorm2d, 3: InstanceNorm3d}
"""The paper's group norm with one group per channel normalises each channel alone: an instance norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Shape of the network, validated by `arguments.py`; one entry per stage, the decoder's from the lowest resolution.

    Attributes:
        dims: spatial axes, 2 or 3.
        features: channels.
        kernels: depthwise kernel per axis; odd.
        strides: stride per axis from the stage before.
        blocks: blocks, the bottleneck's last.
        expansions: expansion ratios, also of the block that downsamples to the stage.
        decoder_blocks: blocks of the decoder.
        decoder_expansions: expansion ratios of the decoder, also of the block that upsamples to the stage.
    """

    dims: int
    features: Size
    kernels: tuple[Size, ...]
    strides: tuple[Size, ...]
    blocks: Size
    expansions: Size
    decoder_blocks: Size
    decoder_expansions: Size


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, norm, expansion to R times the channels, GELU, compression; plus the residual.

    Args:
        depthwise: (B, C, *S) to (B, C, *S'), each channel alone.
        out_channels: after the compression.
        expansion: R.
        residual: added to the output; None: the input itself.
    """

    def __init__(
        self,
        depthwise: nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d,
        out_channels: int,
        expansion: int,
        residual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        channels, dims = depthwise.in_channels, len(depthwise.kernel_size)
        pointwise = CONVOLUTION[dims]
        self.depthwise = depthwise
        self.norm = NORM[dims](channels, affine=True)
        self.expand = pointwise(channels, expansion * channels, 1)
        self.nonlin = nn.GELU()
        self.compress = pointwise(expansion * channels, out_channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        out: Tensor = self.compress(self.nonlin(self.expand(self.norm(self.depthwise(x)))))
        return out + (x if self.residual is None else self.residual(x))


def stage_of(num_blocks: int, channels: int, kernel: Size, expansion: int) -> nn.Sequential:
    """Return the blocks of a stage, which keep the shape (B, C, *S)."""
    conv: Any = DEPTHWISE[len(kernel)]
    padding = _padding(kernel)
    blocks = (
        MedNeXtBlock(conv(channels, channels, kernel, padding=padding, groups=channels), channels, expansion)
        for _ in range(num_blocks)
    )
    return nn.Sequential(*blocks)


def downsampling(in_channels: int, out_channels: int, kernel: Size, stride: Size, expansion: int) -> MedNeXtBlock:
    """Return the block that downsamples: its depthwise convolution and a 1x1 convolution as residual are strided."""
    dims, options = len(kernel), {"stride": stride, "padding": _padding(kernel), "groups": in_channels}
    conv: Any = DEPTHWISE[dims]
    pointwise: Any = CONVOLUTION[dims]
    depthwise = conv(in_channels, in_channels, kernel, **options)
    return MedNeXtBlock(depthwise, out_channels, expansion, pointwise(in_channels, out_channels, 1, stride=stride))


def upsampling(in_channels: int, out_channels: int, kernel: Size, stride: Size, expansion: int) -> MedNeXtBlock:
    """Return the block that upsamples by `stride` with transposed convolutions.

    Input voxel i is output voxel `stride * i`, as in the block that downsamples, so that feature maps stay aligned.
    """
    dims, steps = len(kernel), {"stride": stride, "output_padding": tuple(step - 1 for step in stride)}
    conv: Any = DEPTHWISE_TRANSPOSED[dims]
    pointwise: Any = TRANSPOSED[dims]
    depthwise = conv(in_channels, in_channels, kernel, padding=_padding(kernel), groups=in_channels, **steps)
    return MedNeXtBlock(depthwise, out_channels, expansion, pointwise(in_channels, out_channels, 1, **steps))


class MedNeXt(nn.Module):
    """Encoder and decoder of MedNeXt blocks, with a head for each resolution above the bottleneck.

    All heads always exist, so weights are interchangeable; `deep_supervision` decides which are computed.

    Args:
        num_input_channels: image channels.
        num_output_channels: heads.
        shape: stages of the network.
        deep_supervision: return the logits of all resolutions.
    """

    def __init__(
        self, num_input_channels: int, num_output_channels: int, shape: Shape, *, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        conv, features, kernels = CONVOLUTION[shape.dims], shape.features, shape.kernels
        self.stem = conv(num_input_channels, features[0], 1)
        stages: list[nn.Module] = []
        downs: list[nn.Module] = []
        for stage, channels in enumerate(features):
            if stage:
                sizes = (features[stage - 1], channels, kernels[stage], shape.strides[stage])
                downs.append(downsampling(*sizes, shape.expansions[stage]))
            stages.append(stage_of(shape.blocks[stage], channels, kernels[stage], shape.expansions[stage]))
        ups: list[nn.Module] = []
        decoder: list[nn.Module] = []
        heads: list[nn.Module] = []
        for index, expansion in enumerate(shape.decoder_expansions):
            low = len(features) - 1 - index
            channels, kernel = features[low - 1], kernels[low - 1]
            ups.append(upsampling(features[low], channels, kernel, shape.strides[low], expansion))
            decoder.append(stage_of(shape.decoder_blocks[index], channels, kernel, expansion))
            heads.append(conv(channels, num_output_channels, 1))
        self.encoder_stages, self.downsamplings = nn.ModuleList(stages), nn.ModuleList(downs)
        self.upsamplings, self.decoder_stages = nn.ModuleList(ups), nn.ModuleList(decoder)
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:  # (B, C, *S)
        """Return logits (B, heads, *S), or with deep supervision a list of them, highest resolution first."""
        x = self.encoder_stages[0](self.stem(x))
        skips: list[Tensor] = []
        for down, stage in zip(self.downsamplings, self.encoder_stages[1:], strict=True):
            skips.append(x)
            x = stage(down(x))
        outputs: list[Tensor] = []
        for up, stage, head in zip(self.upsamplings, self.decoder_stages, self.heads, strict=True):
            x = stage(up(x) + skips.pop())
            if self.deep_supervision or not skips:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


def reset_parameters(network: nn.Module) -> None:
    """Draw initial weights as torch's layers do, from torch's global generator."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase):
                module.reset_parameters()


def _padding(kernel: Size) -> Size:
    return tuple(size // 2 for size in kernel)
