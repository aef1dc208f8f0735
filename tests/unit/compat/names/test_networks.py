"""nnU-Net's networks by its names and arguments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from segwright.compat.nnunet.names import building_blocks as blocks
from segwright.compat.nnunet.names import network_helpers as layers
from segwright.compat.nnunet.names.networks import (
    PlainConvUNet,
    ResidualEncoderUNet,
    get_network_from_plans,
    named,
)
from segwright.compat.nnunet.names.plans import ConfigurationManager, PlansManager
from segwright.core.errors import ConfigError
from segwright.data.plan import architecture_block
from segwright.networks.build import build_network

BLOCK = architecture_block(
    "PlainConvUNet",
    dims=3,
    features=(4, 6, 8),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    encoder_blocks=(2, 2, 2),
    decoder_convs=(2, 2),
)
PATH, KWARGS = BLOCK["network_class_name"], BLOCK["arch_kwargs"]
LAYERS: dict[str, Any] = {
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}
X = torch.zeros(1, 1, 4, 8, 8)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(weight, value) for (name, weight), (other, value) in pairs)


def test_both_forms_give_the_planned_network() -> None:
    torch.manual_seed(7)
    expected = build_network(BLOCK, 1, 3, deep_supervision=True, generator=torch.Generator().manual_seed(7))
    later = get_network_from_plans(PATH, KWARGS, ["conv_op"], 1, 3, True, True)
    by_keyword = get_network_from_plans(
        arch_class_name=PATH, arch_kwargs=KWARGS, arch_kwargs_req_import=[], input_channels=1, output_channels=3,
        allow_init=True, deep_supervision=True,
    )  # fmt: skip
    manager = ConfigurationManager({"architecture": BLOCK})
    dataset = {"labels": {"background": 0, "a": 1, "b": 2}}
    first = get_network_from_plans(PlansManager({}), dataset, manager, 1, deep_supervision=True)
    assert all(same_weights(expected, network) for network in (later, by_keyword, first))
    assert isinstance(later, PlainConvUNet)
    assert [tuple(output.shape) for output in first(X)] == [(1, 3, 4, 8, 8), (1, 3, 4, 4, 4)]


def test_deep_supervision_is_off_by_default_in_the_later_form() -> None:
    assert get_network_from_plans(PATH, KWARGS, [], 1, 3)(X).shape == (1, 3, 4, 8, 8)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected the arguments arch_class_name, arch_kwargs"):
        get_network_from_plans(PATH, KWARGS)


def test_another_class_is_imported() -> None:
    kwargs = {"in_features": 2, "out_features": 3}
    with pytest.raises(ConfigError, match="Linear"):
        get_network_from_plans("torch.nn.Linear", kwargs, [], 1, 3)


def test_attributes_that_files_look_into() -> None:
    network = named(build_network(BLOCK, 1, 3, deep_supervision=False), PATH, KWARGS, 3)
    assert isinstance(network, PlainConvUNet)
    encoder: Any = network.encoder
    decoder: Any = network.decoder
    assert encoder.output_channels == [4, 6, 8]
    assert encoder.strides[1] == [1, 2, 2]
    assert encoder.conv_op is nn.Conv3d
    assert len(encoder.stages) == 3
    assert decoder.encoder is encoder
    assert decoder.num_classes == 3
    assert decoder.seg_layers[-1].out_channels == 3
    assert not [name for name in network.state_dict() if name.startswith("decoder.encoder")]
    copied: Any = copy.deepcopy(network)
    assert copied.decoder.encoder is copied.encoder
    assert [tuple(skip.shape[1:]) for skip in encoder(X)] == [(4, 4, 8, 8), (6, 4, 4, 4), (8, 2, 2, 2)]


def test_classes_take_their_arguments() -> None:
    topology = {"n_stages": 2, "features_per_stage": [4, 6], "conv_op": nn.Conv3d, "kernel_sizes": 3, "strides": [1, 2]}
    plain = PlainConvUNet(1, **topology, n_conv_per_stage=2, num_classes=3, n_conv_per_stage_decoder=1, **LAYERS)  # type: ignore[arg-type]
    plain.apply(plain.initialize)
    assert plain(X).shape == (1, 3, 4, 8, 8)
    residual = ResidualEncoderUNet(
        input_channels=1, **topology, n_blocks_per_stage=[1, 2], num_classes=3, n_conv_per_stage_decoder=[1],
        deep_supervision=True, **LAYERS,
    )  # type: ignore[arg-type]  # fmt: skip
    residual.apply(residual.initialize)
    assert [tuple(output.shape) for output in residual(X)] == [(1, 3, 4, 8, 8)]
    assert not residual.encoder.stages[0].blocks[0].conv2.norm.weight.any()  # type: ignore[union-attr,index]


def test_encoders_and_decoder_fit_together() -> None:
    encoder = blocks.PlainConvEncoder(1, 2, [4, 6], nn.Conv3d, 3, [1, 2], 2, return_skips=True, **LAYERS)
    decoder = blocks.UNetDecoder(encoder, 3, 1, deep_supervision=False)
    assert decoder(encoder(X)).shape == (1, 3, 4, 8, 8)  # type: ignore[union-attr]
    last = blocks.ResidualEncoder(1, 2, [4, 6], nn.Conv3d, 3, [1, 2], [1, 2], **LAYERS)(X)
    assert last.shape == (1, 6, 2, 4, 4)


def test_blocks() -> None:
    stack = blocks.StackedConvBlocks(2, nn.Conv3d, 1, [4, 6], 3, 2, **LAYERS)
    assert (stack(X).shape, stack.output_channels) == ((1, 6, 2, 4, 4), 6)
    assert blocks.BasicBlockD(nn.Conv3d, 1, 4, 3, 2, **LAYERS)(X).shape == (1, 4, 2, 4, 4)
    assert blocks.BottleneckD(nn.Conv3d, 1, 2, 4, 3, 1, **LAYERS)(X).shape == (1, 4, 4, 8, 8)
    assert blocks.StackedResidualBlocks(2, nn.Conv3d, 1, 4, 3, 2, **LAYERS)(X).shape == (1, 4, 2, 4, 4)
    with pytest.raises(ConfigError, match="squeeze_excitation: this block has no such option"):
        blocks.BasicBlockD(nn.Conv3d, 1, 4, 3, 1, squeeze_excitation=True)


def test_layers_by_number_of_axes() -> None:
    assert layers.convert_conv_op_to_dim(nn.Conv2d) == 2
    assert layers.convert_dim_to_conv_op(3) is nn.Conv3d
    assert layers.get_matching_convtransp(nn.Conv2d) is nn.ConvTranspose2d
    assert layers.get_matching_instancenorm(dimension=3) is nn.InstanceNorm3d
    assert layers.get_matching_pool_op(nn.Conv3d, adaptive=True, pool_type="max") is nn.AdaptiveMaxPool3d
    assert layers.maybe_convert_scalar_to_list(nn.Conv2d, 3) == [3, 3]
    with pytest.raises(ConfigError, match="give either conv_op or dimension"):
        layers.get_matching_dropout()


def test_a_network_that_nnunet_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="network 'mednext' of the plan is not one of nnU-Net's"):
        get_network_from_plans("mednext", {"n_stages": 3}, [], 1, 3)
