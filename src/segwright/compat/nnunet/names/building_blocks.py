"""The building blocks of dynamic_network_architectures, with its arguments, made of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segwright.compat.nnunet.names.networks import describe_encoder
from segwright.core.errors import ConfigError
from segwright.networks import blocks, unet
from segwright.networks.architecture import PLAIN, RESIDUAL_ENCODER, parse_architecture
from segwright.networks.blocks import LayerOptions, Size

Options = Mapping[str, Any] | None


class ConvDropoutNormReLU(blocks.ConvBlock):
    """Convolution, dropout, norm and non-linearity."""

    def __init__(
        self,
        conv_op: type[nn.Module],
        input_channels: int,
        output_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        nonlin_first: bool = False,
    ) -> None:
        options = _options(
            *(conv_op, conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs),
            nonlin_first=nonlin_first,
        )
        size, step = _size(kernel_size, options), _size(stride, options)
        super().__init__(input_channels, output_channels, size, step, options)
        self.input_channels = input_channels
        self.output_channels = output_channels
        self.stride = [*step]


class StackedConvBlocks(nn.Module):
    """Convolution blocks in a row; only the first one has the stride."""

    def __init__(
        self,
        num_convs: int,
        conv_op: type[nn.Module],
        input_channels: int,
        output_channels: int | Sequence[int],
        kernel_size: int | Sequence[int],
        initial_stride: int | Sequence[int],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        widths = [output_channels] * num_convs if isinstance(output_channels, int) else [*output_channels]
        self.convs = nn.Sequential(
            *(
                ConvDropoutNormReLU(
                    conv_op, before, after, kernel_size, 1 if index else initial_stride, *args, **kwargs
                )
                for index, (before, after) in enumerate(zip([input_channels, *widths], widths, strict=False))
            )
        )
        self.output_channels = widths[-1]
        self.initial_stride = initial_stride

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks."""
        out: Tensor = self.convs(x)
        return out


class BasicBlockD(blocks.BasicBlockD):
    """Residual block of two convolutions."""

    def __init__(
        self,
        conv_op: type[nn.Module],
        input_channels: int,
        output_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        **others: Any,
    ) -> None:
        _require_none(others)
        options = _options(
            conv_op, conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs
        )
        super().__init__(input_channels, output_channels, _size(kernel_size, options), _size(stride, options), options)
        self.input_channels = input_channels
        self.output_channels = output_channels


class BottleneckD(blocks.BottleneckD):
    """Residual block of three convolutions with fewer channels between them."""

    def __init__(
        self,
        conv_op: type[nn.Module],
        input_channels: int,
        bottleneck_channels: int,
        output_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        **others: Any,
    ) -> None:
        _require_none(others)
        options = _options(
            conv_op, conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs
        )
        size, step = _size(kernel_size, options), _size(stride, options)
        super().__init__(input_channels, bottleneck_channels, output_channels, size, step, options)
        self.input_channels = input_channels
        self.output_channels = output_channels


class StackedResidualBlocks(nn.Module):
    """Residual blocks in a row; only the first one has the stride."""

    def __init__(
        self,
        n_blocks: int,
        conv_op: type[nn.Module],
        input_channels: int,
        output_channels: int | Sequence[int],
        kernel_size: int | Sequence[int],
        initial_stride: int | Sequence[int],
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        block: type[nn.Module] = BasicBlockD,
        bottleneck_channels: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        layers = (conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs)
        widths = [output_channels] * n_blocks if isinstance(output_channels, int) else [*output_channels]
        made = []
        for index, (before, after) in enumerate(zip([input_channels, *widths], widths, strict=False)):
            inner = (bottleneck_channels,) if issubclass(block, blocks.BottleneckD) else ()
            stride = 1 if index else initial_stride
            made.append(block(conv_op, before, *inner, after, kernel_size, stride, *layers, **others))
        self.blocks = nn.Sequential(*made)
        self.output_channels = widths[-1]
        self.initial_stride = initial_stride

    def forward(self, x: Tensor) -> Tensor:
        """Apply all blocks."""
        out: Tensor = self.blocks(x)
        return out


class PlainConvEncoder(unet.PlainEncoder):
    """The encoder of `PlainConvUNet`; gives all skips, or without `return_skips` the last one."""

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Any,
        conv_op: type[nn.Module],
        kernel_sizes: Any,
        strides: Any,
        n_conv_per_stage: Any,
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        return_skips: bool = False,
        nonlin_first: bool = False,
        pool: str = "conv",
    ) -> None:
        _require_none({} if pool == "conv" else {"pool": pool})
        layers = (conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs)
        given = _encoder_kwargs(n_stages, features_per_stage, conv_op, kernel_sizes, strides, *layers)
        given |= {"n_conv_per_stage": n_conv_per_stage, "nonlin_first": nonlin_first}
        topology, options = parse_architecture(PLAIN, given)
        super().__init__(input_channels, topology, options)
        describe_encoder(self, topology, options)
        self.return_skips = return_skips

    def forward(self, x: Tensor) -> Any:
        """Return the skips, highest resolution first."""
        skips = super().forward(x)
        return skips if self.return_skips else skips[-1]


class ResidualEncoder(unet.ResidualEncoder):
    """The encoder of `ResidualEncoderUNet`; gives all skips, or without `return_skips` the last one."""

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Any,
        conv_op: type[nn.Module],
        kernel_sizes: Any,
        strides: Any,
        n_blocks_per_stage: Any,
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        block: type[nn.Module] = BasicBlockD,
        bottleneck_channels: Any = None,
        return_skips: bool = False,
        disable_default_stem: bool = False,
        stem_channels: int | None = None,
        **others: Any,
    ) -> None:
        _require_none({**others, "disable_default_stem": disable_default_stem})
        layers = (conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs)
        given = _encoder_kwargs(n_stages, features_per_stage, conv_op, kernel_sizes, strides, *layers)
        given |= {"n_blocks_per_stage": n_blocks_per_stage, "block": block, "stem_channels": stem_channels}
        given |= {"bottleneck_channels": bottleneck_channels}
        topology, options = parse_architecture(RESIDUAL_ENCODER, given)
        super().__init__(input_channels, topology, options)
        describe_encoder(self, topology, options)
        self.return_skips = return_skips

    def forward(self, x: Tensor) -> Any:
        """Return the skips, highest resolution first."""
        skips = super().forward(x)
        return skips if self.return_skips else skips[-1]


class UNetDecoder(unet.Decoder):
    """The decoder of nnU-Net's U-Nets for an encoder with its attributes; layers are the encoder's unless given."""

    def __init__(
        self,
        encoder: Any,
        num_classes: int,
        n_conv_per_stage: int | Sequence[int],
        deep_supervision: bool,
        nonlin_first: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: Options = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: Options = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: Options = None,
        conv_bias: bool | None = None,
    ) -> None:
        stages = len(encoder.output_channels)
        given = _encoder_kwargs(
            *(stages, encoder.output_channels, encoder.conv_op, encoder.kernel_sizes, encoder.strides),
            encoder.conv_bias if conv_bias is None else conv_bias,
            encoder.norm_op if norm_op is None else norm_op,
            encoder.norm_op_kwargs if norm_op_kwargs is None else norm_op_kwargs,
            encoder.dropout_op if dropout_op is None else dropout_op,
            encoder.dropout_op_kwargs if dropout_op_kwargs is None else dropout_op_kwargs,
            encoder.nonlin if nonlin is None else nonlin,
            encoder.nonlin_kwargs if nonlin_kwargs is None else nonlin_kwargs,
        )
        given |= {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": n_conv_per_stage, "nonlin_first": nonlin_first}
        topology, options = parse_architecture(PLAIN, given)
        super().__init__(topology, options, num_classes, deep_supervision=deep_supervision)
        self.__dict__["encoder"] = encoder  # not as a module, whose weights would be counted twice
        self.num_classes = num_classes


def _options(
    conv_op: type[nn.Module],
    conv_bias: bool,
    norm_op: type[nn.Module] | None,
    norm_op_kwargs: Options,
    dropout_op: type[nn.Module] | None,
    dropout_op_kwargs: Options,
    nonlin: type[nn.Module] | None,
    nonlin_kwargs: Options,
    *,
    nonlin_first: bool = False,
) -> LayerOptions:
    return LayerOptions(
        conv_op=conv_op,
        conv_bias=bool(conv_bias),
        norm_op=norm_op,
        norm_op_kwargs=dict(norm_op_kwargs or {}),
        dropout_op=dropout_op,
        dropout_op_kwargs=dict(dropout_op_kwargs or {}),
        nonlin=nonlin,
        nonlin_kwargs=dict(nonlin_kwargs or {}),
        nonlin_first=nonlin_first,
    )


def _encoder_kwargs(
    n_stages: int, features: Any, conv_op: type[nn.Module], kernel_sizes: Any, strides: Any, *layers: Any
) -> dict[str, Any]:
    names = (
        "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs",
    )  # fmt: skip
    topology = {"n_stages": n_stages, "features_per_stage": features, "conv_op": conv_op, "kernel_sizes": kernel_sizes}
    return {**topology, "strides": strides, "n_conv_per_stage_decoder": 1, **dict(zip(names, layers, strict=True))}


def _size(value: int | Sequence[int], options: LayerOptions) -> Size:
    return (value,) * options.dims if isinstance(value, int) else tuple(int(part) for part in value)


def _require_none(others: Mapping[str, Any]) -> None:
    """Refuse options of blocks that our networks do not have.

    Raises:
        ConfigError: one is given and not off.
    """
    ratios = {"squeeze_excitation_reduction_ratio", "squeeze_excitation_rd_divisor", "pool_type"}
    given = [name for name, value in others.items() if value and name not in ratios]
    if given:
        raise ConfigError(f"{', '.join(given)}: this block has no such option here; leave it out")
