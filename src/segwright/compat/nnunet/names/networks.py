"""nnU-Net's U-Nets under the names of dynamic_network_architectures, and their construction from a plan.

They are our networks, with the attributes besides that trainer files look into (nnU-Net behaviour 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import nn

from segwright.compat.nnunet.names.helpers import InitWeights_He, init_last_bn_before_add_to_0
from segwright.compat.nnunet.names.plans import ConfigurationManager
from segwright.core.errors import ConfigError
from segwright.core.extensions.trust import TRUST_ALL
from segwright.networks.architecture import PLAIN, RESIDUAL, RESIDUAL_ENCODER, is_known_network, parse_architecture
from segwright.networks.blocks import LayerOptions
from segwright.networks.build import NETWORKS, SHORT_NAMES, ArchitectureSpec, build_network
from segwright.networks.references import build_by_class_path
from segwright.networks.unet import Topology, UNet

_FORM_2023: Final = ("plans_manager", "dataset_json", "configuration_manager", "num_input_channels", "deep_supervision")
_FORM_2024: Final = (
    "arch_class_name", "arch_kwargs", "arch_kwargs_req_import", "input_channels", "output_channels", "allow_init",
    "deep_supervision",
)  # fmt: skip


class _NamedUNet(UNet):
    """A U-Net that takes nnU-Net's keyword arguments."""

    class_name: ClassVar[str]
    key_to_encoder = "encoder.stages"
    key_to_stem = "encoder.stages.0"
    key_to_lpe: str | None = None

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool, kwargs: Mapping[str, Any]
    ) -> None:
        topology, options = parse_architecture(self.class_name, kwargs)
        super().__init__(input_channels, num_classes, topology, options, deep_supervision=bool(deep_supervision))
        add_attributes(self, num_classes, topology, options)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Set the initial weights of one module; for `apply`."""
        InitWeights_He()(module)


class PlainConvUNet(_NamedUNet):
    """nnU-Net's default network."""

    class_name = PLAIN

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Any,
        conv_op: Any,
        kernel_sizes: Any,
        strides: Any,
        n_conv_per_stage: Any,
        num_classes: int,
        n_conv_per_stage_decoder: Any,
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: Mapping[str, Any] | None = None,
        dropout_op: Any = None,
        dropout_op_kwargs: Mapping[str, Any] | None = None,
        nonlin: Any = None,
        nonlin_kwargs: Mapping[str, Any] | None = None,
        deep_supervision: bool = False,
        nonlin_first: bool = False,
    ) -> None:
        given = _layers(conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs)
        given |= {"n_stages": n_stages, "features_per_stage": features_per_stage, "conv_op": conv_op}
        given |= {"kernel_sizes": kernel_sizes, "strides": strides, "n_conv_per_stage": n_conv_per_stage}
        given |= {"n_conv_per_stage_decoder": n_conv_per_stage_decoder, "nonlin_first": nonlin_first}
        super().__init__(input_channels, num_classes, deep_supervision, given)


class ResidualEncoderUNet(_NamedUNet):
    """nnU-Net's network with a residual encoder."""

    class_name = RESIDUAL_ENCODER
    key_to_stem = "encoder.stem"

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Any,
        conv_op: Any,
        kernel_sizes: Any,
        strides: Any,
        n_blocks_per_stage: Any,
        num_classes: int,
        n_conv_per_stage_decoder: Any,
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: Mapping[str, Any] | None = None,
        dropout_op: Any = None,
        dropout_op_kwargs: Mapping[str, Any] | None = None,
        nonlin: Any = None,
        nonlin_kwargs: Mapping[str, Any] | None = None,
        deep_supervision: bool = False,
        block: Any = None,
        bottleneck_channels: Any = None,
        stem_channels: int | None = None,
    ) -> None:
        given = _layers(conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs)
        given |= {"n_stages": n_stages, "features_per_stage": features_per_stage, "conv_op": conv_op}
        given |= {"kernel_sizes": kernel_sizes, "strides": strides, "n_blocks_per_stage": n_blocks_per_stage}
        given |= {"n_conv_per_stage_decoder": n_conv_per_stage_decoder, "block": block}
        given |= {"bottleneck_channels": bottleneck_channels, "stem_channels": stem_channels}
        super().__init__(input_channels, num_classes, deep_supervision, given)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Set the initial weights of one module; for `apply`."""
        InitWeights_He()(module)
        init_last_bn_before_add_to_0(module)


class ResidualUNet(ResidualEncoderUNet):
    """A network with a residual encoder and decoder."""

    class_name = RESIDUAL


CLASSES: Final[Mapping[str, type[_NamedUNet]]] = {
    cls.class_name: cls for cls in (PlainConvUNet, ResidualEncoderUNet, ResidualUNet)
}


def get_network_from_plans(*args: Any, **kwargs: Any) -> nn.Module:
    """Build the network of a plan, by either form of the arguments.

    2.0 to 2.2: `plans_manager, dataset_json, configuration_manager, num_input_channels, deep_supervision=True`; later:
    `arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=True,
    deep_supervision=None`. The initial weights are drawn with the seed of torch's global generator.

    Raises:
        ConfigError: the arguments are of neither form, or there is no such network.
    """
    is_later = isinstance(args[0], str) if args else "arch_class_name" in kwargs
    names = _FORM_2024 if is_later else _FORM_2023
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    missing = [name for name in names if name not in given and name not in {"allow_init", "deep_supervision"}]
    if len(args) > len(names) or missing or {*given} - {*names}:
        raise ConfigError(
            f"get_network_from_plans: expected the arguments {', '.join(names)}, got {len(args)} and {sorted(kwargs)}"
        )
    if is_later:
        inputs, heads = given["input_channels"], given["output_channels"]
        return _build(
            *(given["arch_class_name"], given["arch_kwargs"], inputs, heads), bool(given.get("deep_supervision"))
        )
    configuration: ConfigurationManager = given["configuration_manager"]
    heads = given["plans_manager"].get_label_manager(given["dataset_json"]).num_segmentation_heads
    path, arch_kwargs = configuration.network_arch_class_name, configuration.network_arch_init_kwargs
    return _build(path, arch_kwargs, given["num_input_channels"], heads, bool(given.get("deep_supervision", True)))


def named(network: nn.Module, path: str, kwargs: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Give one of our U-Nets the class and the attributes that trainer files expect, in place, and return it.

    Args:
        network: built by `segwright.networks`; one that is no `UNet` is unchanged.
        path: its class path in the plan.
        kwargs: its arguments in the plan.
        num_classes: output channels.
    """
    if type(network) is UNet and is_known_network(path):
        network.__class__ = CLASSES[path.rpartition(".")[2]]
        add_attributes(network, num_classes, *parse_architecture(path, kwargs))
    return network


def add_attributes(network: UNet, num_classes: int, topology: Topology, options: LayerOptions) -> None:
    """Add nnU-Net's attributes to the encoder and decoder of a U-Net, in place."""
    encoder, decoder = network.encoder, network.decoder
    describe_encoder(encoder, topology, options)
    decoder.__dict__["encoder"] = encoder  # not as a module, whose weights would be counted twice
    decoder.__dict__["num_classes"] = num_classes


def describe_encoder(encoder: nn.Module, topology: Topology, options: LayerOptions) -> None:
    """Add the attributes of nnU-Net's encoders, in place."""
    encoder.__dict__.update(
        output_channels=[*topology.features],
        strides=[[*stride] for stride in topology.strides],
        kernel_sizes=[[*kernel] for kernel in topology.kernels],
        return_skips=True,
        conv_op=options.conv_op,
        conv_bias=options.conv_bias,
        norm_op=options.norm_op,
        norm_op_kwargs=dict(options.norm_op_kwargs),
        dropout_op=options.dropout_op,
        dropout_op_kwargs=dict(options.dropout_op_kwargs),
        nonlin=options.nonlin,
        nonlin_kwargs=dict(options.nonlin_kwargs),
    )


def _build(path: str, kwargs: Mapping[str, Any], inputs: int, heads: int, deep_supervision: bool) -> nn.Module:
    if is_known_network(path) or path in SHORT_NAMES:
        spec = ArchitectureSpec(reference=path, kwargs=dict(kwargs))
        generator = torch.Generator().manual_seed(torch.initial_seed())
        network = build_network(spec, inputs, heads, deep_supervision=deep_supervision, generator=generator)
        return named(network, path, kwargs, heads)
    if path in NETWORKS.names():
        raise ConfigError(
            f"network '{path}' of the plan is not one of nnU-Net's, for which trainer files are written; train without "
            "--nnunet-trainer, or plan with another preset"
        )
    return build_by_class_path(path, kwargs, inputs, heads, deep_supervision=deep_supervision, trust=TRUST_ALL)


def _layers(
    conv_bias: bool,
    norm_op: Any,
    norm_op_kwargs: Mapping[str, Any] | None,
    dropout_op: Any,
    dropout_op_kwargs: Mapping[str, Any] | None,
    nonlin: Any,
    nonlin_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "conv_bias": conv_bias,
        "norm_op": norm_op,
        "norm_op_kwargs": norm_op_kwargs,
        "dropout_op": dropout_op,
        "dropout_op_kwargs": dropout_op_kwargs,
        "nonlin": nonlin,
        "nonlin_kwargs": nonlin_kwargs,
    }
