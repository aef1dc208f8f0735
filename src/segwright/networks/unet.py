"""U-Nets with plain and residual encoders, 2D and 3D, with nnU-Net's mathematics and parameter names.

nnU-Net behaviour 7.3-7.5.

Unlike nnU-Net's, the decoder holds no reference to the encoder, so each parameter has one name in `state_dict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from segwright.networks.blocks import TRANSPOSED, ConvStack, LayerOptions, ResidualStack, Size


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Topology of a U-Net, one entry per stage; validated by `architecture.py`.

    Attributes:
        features: channels after each encoder stage.
        kernels: kernel size of each stage, per axis.
        strides: stride of each stage's first convolution, per axis.
        encoder_blocks: convolutions (plain) or residual blocks in each encoder stage.
        decoder_blocks: the same for the decoder, one entry less, from the bottleneck upwards.
        residual_encoder: residual blocks in the encoder.
        residual_decoder: residual blocks in the decoder.
        stem_channels: channels of the residual encoder's stem.
        bottleneck_channels: inner channels of each stage's bottleneck blocks; None for basic blocks.
    """

    features: tuple[int, ...]
    kernels: tuple[Size, ...]
    strides: tuple[Size, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    residual_encoder: bool = False
    residual_decoder: bool = False
    stem_channels: int = 0
    bottleneck_channels: tuple[int, ...] | None = None


def fits_patch(topology: Topology, patch_size: Sequence[int]) -> bool:
    """Return whether up-sampled features match the skips in size: kernels are odd, and strides divide the patch."""
    if len(patch_size) != len(topology.strides[0]) or any(size % 2 == 0 for each in topology.kernels for size in each):
        return False
    steps = [prod(stride[axis] for stride in topology.strides) for axis in range(len(patch_size))]
    return not any(size % step for size, step in zip(patch_size, steps, strict=True))


class Encoder(nn.Module):
    """Base of the encoders, with what code that builds on one asks for, under nnU-Net's names.

    Attributes:
        output_channels: of each stage.
        strides: of each stage, per axis.
        kernel_sizes: of each stage, per axis.
        conv_op: class of the convolutions; like the following, of all of them.
        norm_op: class of the norm layers.
        norm_op_kwargs: its arguments.
        dropout_op: class of the dropout layers.
        dropout_op_kwargs: its arguments.
        nonlin: class of the non-linearities.
        nonlin_kwargs: its arguments.
        conv_bias: whether convolutions have a bias.
        return_skips: True: `forward` returns the output of every stage.
    """

    def __init__(self, topology: Topology, options: LayerOptions) -> None:
        super().__init__()
        self.output_channels = [*topology.features]
        self.strides = [[*stride] for stride in topology.strides]
        self.kernel_sizes = [[*kernel] for kernel in topology.kernels]
        self.conv_op = options.conv_op
        self.norm_op = options.norm_op
        self.norm_op_kwargs = dict(options.norm_op_kwargs)
        self.dropout_op = options.dropout_op
        self.dropout_op_kwargs = dict(options.dropout_op_kwargs)
        self.nonlin = options.nonlin
        self.nonlin_kwargs = dict(options.nonlin_kwargs)
        self.conv_bias = options.conv_bias
        self.return_skips = True


class PlainEncoder(Encoder):
    """Stacks of convolutions; the first convolution of each stage is strided."""

    def __init__(self, in_channels: int, topology: Topology, options: LayerOptions) -> None:
        super().__init__(topology, options)
        stages: list[nn.Module] = []
        channels = in_channels
        for index, features in enumerate(topology.features):
            stack = ConvStack(
                topology.encoder_blocks[index],
                channels,
                features,
                topology.kernels[index],
                topology.strides[index],
                options,
            )
            stages.append(nn.Sequential(stack))
            channels = features
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output (B, features, *S) of every stage, highest resolution first."""
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class ResidualEncoder(Encoder):
    """A stem of one convolution, then stacks of residual blocks; the first block of each stage is strided."""

    def __init__(self, in_channels: int, topology: Topology, options: LayerOptions) -> None:
        super().__init__(topology, options)
        channels = topology.stem_channels
        unit = (1,) * options.dims
        self.stem = ConvStack(1, in_channels, channels, topology.kernels[0], unit, options)
        stages: list[nn.Module] = []
        for index, features in enumerate(topology.features):
            inner = topology.bottleneck_channels
            stages.append(
                ResidualStack(
                    topology.encoder_blocks[index],
                    channels,
                    features,
                    topology.kernels[index],
                    topology.strides[index],
                    options,
                    bottleneck_channels=None if inner is None else inner[index],
                )
            )
            channels = features
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output (B, features, *S) of every stage, highest resolution first."""
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Up-sampling by transposed convolution, concatenation with the skip, convolutions, one head per resolution.

    All heads always exist, so weights are interchangeable; `deep_supervision` decides which are computed.
    """

    def __init__(
        self, topology: Topology, options: LayerOptions, num_output_channels: int, *, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.num_classes = num_output_channels
        transposed = TRANSPOSED[options.dims]
        unit = (1,) * options.dims
        stages: list[nn.Module] = []
        upsamplings: list[nn.Module] = []
        heads: list[nn.Module] = []
        for index, num_blocks in enumerate(topology.decoder_blocks):
            low = len(topology.features) - 1 - index
            high = low - 1
            features, stride = topology.features[high], topology.strides[low]
            upsamplings.append(transposed(topology.features[low], features, stride, stride, bias=options.conv_bias))
            stack = ResidualStack if topology.residual_decoder else ConvStack
            stages.append(stack(num_blocks, 2 * features, features, topology.kernels[high], unit, options))
            heads.append(options.conv_op(features, num_output_channels, 1, bias=True))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(upsamplings)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, heads, *S), or with deep supervision a list of them, highest resolution first.

        Args:
            skips: (B, features, *S) per stage, highest resolution first.
        """
        x = skips[-1]
        outputs: list[Tensor] = []
        last = len(self.stages) - 1
        for index, (upsample, stage, head) in enumerate(
            zip(self.transpconvs, self.stages, self.seg_layers, strict=True)
        ):
            assert isinstance(stage, ConvStack | ResidualStack)
            skip = skips[-2 - index]
            if index == last:
                outputs.append(stage.forward_up(upsample, x, skip, head))
                break
            x = stage.forward_up(upsample, x, skip)
            if self.deep_supervision:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class UNet(nn.Module):
    """Encoder and decoder with skip connections."""

    def __init__(
        self,
        num_input_channels: int,
        num_output_channels: int,
        topology: Topology,
        options: LayerOptions,
        *,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        encoder = ResidualEncoder if topology.residual_encoder else PlainEncoder
        self.encoder = encoder(num_input_channels, topology, options)
        self.decoder = Decoder(topology, options, num_output_channels, deep_supervision=deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:  # (B, C, *S)
        """Return logits (B, heads, *S), or with deep supervision a list of them, highest resolution first."""
        out: Tensor | list[Tensor] = self.decoder(self.encoder(x))
        return out
