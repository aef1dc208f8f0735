"""Construction of networks from plans, names and user functions."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.trust import TRUST_ALL, TRUST_NONE
from segwright.core.extensions.user_code import UserCodeError
from segwright.networks.architecture import RESENC_L_KWARGS, kwargs_for_patch, parse_architecture, resolve_op
from segwright.networks.build import (
    MAX_WEIGHTS,
    ArchitectureSpec,
    build_from_spec,
    build_network,
    build_on_meta,
    initialize,
    move_to_device,
    require_weights,
    set_deep_supervision,
)
from segwright.networks.norm import InstanceNorm2d, InstanceNorm3d
from segwright.networks.shapes import output_shapes

PREFIX = "dynamic_network_architectures.architectures.unet."


def plain(dims: int = 2, stages: int = 3, **changes: Any) -> dict[str, Any]:
    """Return a plan's architecture block."""
    kwargs = {
        "n_stages": stages,
        "features_per_stage": [4 * 2**stage for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }
    return {
        "network_class_name": PREFIX + "PlainConvUNet",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def residual(dims: int, features: list[int], blocks: list[int]) -> dict[str, Any]:
    block = plain(dims, len(features), features_per_stage=features)
    block["network_class_name"] = PREFIX + "ResidualEncoderUNet"
    del block["arch_kwargs"]["n_conv_per_stage"]
    block["arch_kwargs"] |= {"n_blocks_per_stage": blocks, "n_conv_per_stage_decoder": [1] * (len(blocks) - 1)}
    return block


def features(dims: int, stages: int) -> list[int]:
    return [min({2: 512, 3: 320}[dims], 32 * 2**stage) for stage in range(stages)]


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        (plain(3, 6, features_per_stage=features(3, 6)), 31195594),
        (plain(2, 8, features_per_stage=features(2, 8)), 46324558),
        (residual(3, features(3, 6), [1, 3, 4, 6, 6, 6]), 102349770),
        (residual(2, features(2, 8), [1, 3, 4, 6, 6, 6, 6, 6]), 140017038),
    ],
)
def test_parameter_counts_of_the_specification(
    architecture: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segwright.networks.build.initialize", lambda network, generator: None)
    network = build_network(architecture, 1, 2, deep_supervision=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_one_tensor_without_deep_supervision_a_list_with_it() -> None:
    network = build_network(plain(), 1, 3, deep_supervision=True)
    image = torch.randn(1, 1, 16, 16)
    outputs = network(image)
    assert [tuple(output.shape) for output in outputs] == [(1, 3, 16, 16), (1, 3, 8, 8)]
    set_deep_supervision(network, False)
    assert torch.equal(network(image), outputs[0])


def test_output_shapes_come_from_the_network() -> None:
    kwargs = plain(3, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    network = build_network(kwargs, 1, 3, deep_supervision=True)
    assert output_shapes(network, 1, (8, 16, 16)) == [(3, 8, 16, 16), (3, 8, 8, 8)]


def test_output_shapes_of_a_network_that_meta_cannot_trace() -> None:
    assert output_shapes(Untraceable(), 1, (4, 4)) == [(1, 4, 4)]


def test_output_shapes_refuse_another_kind_of_output() -> None:
    with pytest.raises(ModelError, match="expected logits with 4 axes"):
        output_shapes(nn.Flatten(), 1, (4, 4))


def test_scalars_are_replicated() -> None:
    block = plain(n_conv_per_stage=1, kernel_sizes=3, strides=[1, 2, [2, 2]], features_per_stage=6)
    topology, _ = parse_architecture(block["network_class_name"], block["arch_kwargs"])
    assert topology.features == (6, 6, 6)
    assert topology.kernels == ((3, 3),) * 3
    assert topology.strides == ((1, 1), (2, 2), (2, 2))


def test_instance_norm_becomes_ours() -> None:
    assert resolve_op("norm_op", "torch.nn.modules.instancenorm.InstanceNorm3d") is InstanceNorm3d
    assert resolve_op("norm_op", nn.InstanceNorm2d) is InstanceNorm2d


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("nonlin", "os.system", "nonlin 'os.system' is not supported"),
        ("nonlin", "mypkg.LeakyReLU", "not supported"),
        ("norm_op", "torch.nn.InstanceNrm3d", "did you mean 'InstanceNorm3d'"),
    ],
)
def test_ops_outside_the_list_are_refused(key: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_op(key, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [1, 2]}, "strides has 2 entries; n_stages requires 3"),
        ({"n_conv_per_stage_decoder": [1, 1, 1]}, "n_conv_per_stage_decoder has 3 entries; n_stages requires 2"),
        ({"kernel_sizes": [[3, 3, 3]] * 3}, "expected 2 axes"),
        ({"feature_per_stage": 4}, "unknown argument 'feature_per_stage'.*did you mean 'features_per_stage'"),
        ({"stochastic_depth_p": 0.1}, "stochastic_depth_p is not supported"),
        ({"strides": None}, "lacks strides"),
        ({"n_stages": 1}, "needs at least 2"),
        ({"features_per_stage": [4, 0, 4]}, "at least 1"),
        ({"norm_op": "torch.nn.InstanceNorm3d"}, "does not fit conv_op"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(plain(**changes), 1, 2, deep_supervision=False)


def test_an_unknown_network_class_says_what_to_do() -> None:
    block = {**plain(), "network_class_name": "some.where.PlainConvUnet"}
    with pytest.raises(ConfigError, match="did you mean 'PlainConvUNet'.*package.module:function"):
        build_network(block, 1, 2, deep_supervision=False)


def test_construction_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (build_network(plain(), 1, 2, deep_supervision=False) for _ in range(2))
    seeded = build_network(plain(), 1, 2, deep_supervision=False, generator=torch.Generator().manual_seed(5))
    assert torch.equal(before, torch.random.get_rng_state())
    name = "encoder.stages.0.0.convs.1.conv.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], seeded.state_dict()[name])


def test_initial_weights_have_the_specified_spread() -> None:
    network = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ConvTranspose2d(64, 128, 2, 2), nn.BatchNorm2d(128))
    initialize(network, torch.Generator().manual_seed(0))
    gain = (2 / (1 + 0.01**2)) ** 0.5
    assert float(network[0].weight.detach().std()) == pytest.approx(gain / (64 * 9) ** 0.5, rel=0.02)  # type: ignore[union-attr]
    assert float(network[1].weight.detach().std()) == pytest.approx(gain / (128 * 4) ** 0.5, rel=0.02)  # type: ignore[union-attr]
    assert not network[0].bias.any()  # type: ignore[union-attr]


def test_residual_blocks_start_as_their_skip() -> None:
    network = build_network(residual(2, [4, 8], [1, 2]), 1, 2, deep_supervision=False)
    state = network.state_dict()
    last = [key for key in state if ".conv2.norm." in key]
    assert last
    assert all(not state[key].any() for key in last)
    assert state["encoder.stages.1.blocks.0.conv1.norm.weight"].eq(1).all()


def test_residual_unet_by_name_takes_the_plans_topology() -> None:
    network = build_from_spec(ArchitectureSpec(reference="residual-unet"), plain(2, 5), 1, 2, (32, 32), False)
    state = network.state_dict()
    blocks = [sum(f"encoder.stages.{s}.blocks.{b}.conv1.conv.weight" in state for b in range(9)) for s in range(5)]
    assert blocks == [1, 3, 4, 6, 6]
    assert state["encoder.stages.4.blocks.5.conv2.conv.weight"].shape == (64, 64, 3, 3)
    assert "decoder.stages.3.convs.0.conv.weight" in state
    assert "decoder.stages.3.convs.1.conv.weight" not in state


def test_unet_by_name_takes_a_residual_plans_topology_and_own_kwargs() -> None:
    spec = ArchitectureSpec(reference="unet", kwargs={"features_per_stage": [6, 6]})
    network = build_from_spec(spec, residual(2, [4, 8], [1, 2]), 1, 2, (32, 32), False)
    assert network.state_dict()["encoder.stages.1.0.convs.1.conv.weight"].shape == (6, 6, 3, 3)


def test_names_work_without_a_plan() -> None:
    for name in ("unet", "residual-unet"):
        network = build_from_spec(
            ArchitectureSpec(reference=name, kwargs={"features_per_stage": 4}), {}, 1, 2, (16, 16), True
        )
        assert output_shapes(network, 1, (16, 16)) == [(2, 16, 16), (2, 8, 8)]


def test_no_spec_builds_the_plans_network() -> None:
    network = build_from_spec(None, plain(), 1, 2, (16, 16), False)
    assert "encoder.stages.2.0.convs.1.conv.weight" in network.state_dict()


def test_a_user_function_gets_patch_size_and_its_own_kwargs() -> None:
    spec = ArchitectureSpec(reference=f"{__name__}:make_head", kwargs={"bias": False})
    before = torch.random.get_rng_state()
    network = build_from_spec(spec, plain(), 2, 3, (16, 16), True, trust=TRUST_ALL)
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(network, nn.Conv2d)
    assert network.weight.shape == (3, 2, 1, 1)
    assert ArchitectureSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("reference", "kwargs", "message"),
    [
        ("residual-unit", {}, "did you mean 'residual-unet'"),
        ("no_such_module:net", {}, "no module named no_such_module"),
        ("make_head", {"wrong": 1}, r"called as fn\(num_input_channels"),
        ("make_nothing", {}, "must return a torch.nn.Module"),
        ("NOT_CALLABLE", {}, "cannot be called"),
    ],
)
def test_bad_references_are_explained(reference: str, kwargs: dict[str, Any], message: str) -> None:
    if reference in globals():
        reference = f"{__name__}:{reference}"
    spec = ArchitectureSpec(reference=reference, kwargs=kwargs)
    with pytest.raises((ConfigError, ModelError, UserCodeError), match=message):
        build_from_spec(spec, plain(), 1, 2, (8, 8), False, trust=TRUST_ALL)


def test_a_reference_that_nobody_trusts_is_not_imported() -> None:
    for reference in (f"{__name__}:make_head", "this:build", "numpy.f2py.__main__:main", "segwright.api:run"):
        with pytest.raises(ModelError, match=rf"model/x\.json: names the network '{reference}'.*--trust-code"):
            build_from_spec(
                *(ArchitectureSpec(reference=reference), plain(), 1, 2, (8, 8), False),
                trust=TRUST_NONE.with_references("other:build"),
                source="model/x.json",
            )


@pytest.mark.parametrize("name", ["unet", "residual-unet"])
def test_our_own_builders_need_no_trust(name: str) -> None:
    reference = f"segwright.networks.build:build_{name.replace('-', '_')}"
    spec = ArchitectureSpec(reference=reference, kwargs={"features_per_stage": 4})
    assert isinstance(build_from_spec(spec, {}, 1, 2, (16, 16), False), nn.Module)


@pytest.mark.parametrize("kwargs", [{"n_stages": "x"}, {"features_per_stage": {}}, {"strides": None}, {"conv_op": 3}])
def test_arguments_that_fit_no_built_in_network_are_an_error_of_the_settings(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build_from_spec(ArchitectureSpec(reference="residual-unet", kwargs=kwargs), plain(), 1, 2, (8, 8), False)


def test_what_a_builder_raises_is_told_with_its_file_and_line() -> None:
    spec = ArchitectureSpec(reference=f"{__name__}:make_trouble")
    line = make_trouble.__code__.co_firstlineno + 1
    with pytest.raises(UserCodeError, match=rf"^{__file__}:{line}: network '.*' failed with KeyError: 'lost'$"):
        build_from_spec(spec, plain(), 1, 2, (8, 8), False, trust=TRUST_ALL)


def test_a_network_that_raises_is_told_with_its_file_and_line() -> None:
    line = Troubled.forward.__code__.co_firstlineno + 1
    with pytest.raises(ModelError, match=rf"^{__file__}:{line}: the network failed .* RuntimeError: no such luck"):
        output_shapes(Troubled(), 1, (4, 4))


def test_layers_of_a_foreign_network_are_torchs_unless_everything_is_trusted() -> None:
    path = f"{__name__}.Foreign"
    trust = TRUST_NONE.with_references(path, f"{__name__}:Foreign")
    for kwargs, fits in (({"conv_op": "torch.nn.modules.conv.Conv2d"}, True), ({"conv_op": "os.mkdir"}, False)):
        with nullcontext() if fits else pytest.raises(ConfigError, match="'os.mkdir' is not supported"):
            network = build_from_spec(
                *(ArchitectureSpec(reference=path, kwargs=kwargs), plain(), 1, 2, (8, 8), False), trust=trust
            )
            assert isinstance(network, Foreign)


def test_the_short_name_of_self_supervised_plans_is_known() -> None:
    topology, options = parse_architecture(PREFIX + "ResidualEncoderUNet", RESENC_L_KWARGS)
    assert topology.encoder_blocks == (1, 3, 4, 6, 6, 6)
    assert options.dims == 3


def test_a_patch_alone_gives_a_topology_that_fits() -> None:
    kwargs = kwargs_for_patch((20, 64, 64))
    assert kwargs["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]


def test_prepare_lays_convolutions_out_for_the_cpu() -> None:
    network = move_to_device(build_network(plain(3, 2), 1, 2, deep_supervision=False), torch.device("cpu"))
    weight = network.state_dict()["encoder.stages.0.0.convs.1.conv.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


class Untraceable(nn.Module):
    """Decides by a value, which the meta device has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) == 0 else x[..., ::2]


NOT_CALLABLE = 3


class Foreign(nn.Module):
    """A class of nnU-Net's kind."""

    def __init__(self, input_channels: int, num_classes: int, conv_op: Any, deep_supervision: bool) -> None:
        super().__init__()
        self.layer = conv_op(input_channels, num_classes, 1)


class Troubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such luck")


def make_trouble(*_: object, **__: object) -> None:
    raise KeyError("lost")


def make_head(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    bias: bool = True,
) -> nn.Module:
    assert patch_size == (16, 16)
    assert deep_supervision
    return nn.Conv2d(num_input_channels, num_output_channels, 1, bias=bias)


def make_nothing(*_: object, **__: object) -> None:
    return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_stages": 65}, "n_stages is 65; a U-Net needs at least 2 and at most 64"),
        ({"n_stages": 3.5}, "n_stages has '3.5'; expected a whole number"),
        ({"n_conv_per_stage": [400, 400, 400]}, "1204 blocks in all, .* at most 1000 are allowed"),
        ({"features_per_stage": [4, 8, "8"]}, "features_per_stage has '8'; expected a whole number"),
        ({"features_per_stage": [10**5] * 3}, "has [0-9]+ million weights, at most 1074 million are allowed"),
        ({"kernel_sizes": [1001, 3, 3], "features_per_stage": 512}, "million weights, at most"),
        ({"kernel_sizes": [[3, 0], 3, 3]}, r"kernel_sizes has the entry \[3, 0\]; every part must be at least 1"),
        ({"strides": [1, -2, 2]}, r"strides has the entry \[-2, -2\]; every part"),
        ({"norm_op_kwargs": {"device": "cuda"}}, "unknown argument 'device' in norm_op_kwargs"),
        ({"norm_op_kwargs": {"eps": float("nan")}}, "norm_op_kwargs has eps = nan; expected a finite number"),
        ({"nonlin_kwargs": {"negative_slope": "x"}}, "arguments that torch rejects"),
        ({"nonlin": "torch.nn.GELU", "nonlin_kwargs": {"approximate": "x"}}, "arguments that torch rejects"),
        ({"dropout_op": "torch.nn.Dropout2d", "dropout_op_kwargs": {"p": 7}}, "arguments that torch rejects"),
    ],
)
def test_definitions_that_no_network_has_are_refused_before_anything_is_built(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(plain(**changes), 1, 2, deep_supervision=False)


@pytest.mark.parametrize("channels", [0, 10**6])
def test_channels_and_heads_are_bounded(channels: int) -> None:
    with pytest.raises(ConfigError, match=f"a network cannot have {channels} image channels"):
        build_network(plain(), channels, 2, deep_supervision=False)
    with pytest.raises(ConfigError, match=f"a network cannot have {channels} heads"):
        build_network(plain(), 1, channels, deep_supervision=False)


def test_arguments_of_other_packages_networks_are_bounded() -> None:
    for kwargs in ({"eva_depth": 10**6}, {"filters": [1] * 1001}, {"depths": [[float("inf")]]}):
        with pytest.raises(ConfigError, match="network 'primus': the arguments contain"):
            build_from_spec(ArchitectureSpec(reference="primus", kwargs=kwargs), {}, 1, 2, (16, 16, 16), False)


def test_weights_of_a_network_that_no_patch_can_pass_are_refused() -> None:
    block = plain()
    spec = ArchitectureSpec.from_plan(block)
    weights = build_on_meta(spec, 1, 2).state_dict()
    require_weights(spec, block, 1, 2, (16, 16), weights, source="x")
    with pytest.raises(
        ModelError, match=r"failed on an input of shape \(2, 1, 15, 16\).*its strides fit the patch size"
    ):
        require_weights(spec, block, 1, 2, (15, 16), weights, source="x")


REAL = {
    "ResEncXL": (3, [32, 64, 128, 256, 320, 320, 320], [1, 3, 4, 6, 6, 6, 6]),
    "2D of nine stages": (2, [32, 64, 128, 256, 512, 512, 512, 512, 512], [1, 3, 4, 6, 6, 6, 6, 6, 6]),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_the_largest_networks_of_plans_in_use_are_accepted(name: str, kernel: int) -> None:
    dims, channels, blocks = REAL[name]
    kwargs = {
        **RESENC_L_KWARGS,
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "n_stages": len(channels),
        "features_per_stage": channels,
        "kernel_sizes": [[1, kernel, kernel][-dims:], *[[min(kernel, 3)] * dims] * (len(blocks) - 1)],
        "strides": [[1] * dims, *[[2] * dims] * (len(blocks) - 1)],
        "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": [1] * (len(blocks) - 1),
    }
    network = build_on_meta(ArchitectureSpec(reference=PREFIX + "ResidualEncoderUNet", kwargs=kwargs), 4, 120)
    assert sum(weight.numel() for weight in network.parameters()) < MAX_WEIGHTS / 4


@pytest.mark.parametrize("block", [plain(3, 2), residual(3, [4, 8], [1, 1])], ids=["plain", "residual"])
def test_encoder_says_what_a_head_on_it_needs(block: dict[str, Any]) -> None:
    spec = ArchitectureSpec(reference=block["network_class_name"], kwargs=block["arch_kwargs"])
    network: Any = build_on_meta(spec, 1, 3)
    encoder = network.encoder
    assert encoder.output_channels == [4, 8]
    assert encoder.strides == [[1, 1, 1], [2, 2, 2]]
    assert encoder.kernel_sizes == [[3, 3, 3], [3, 3, 3]]
    assert (encoder.conv_op, encoder.conv_bias, encoder.return_skips) == (nn.Conv3d, True, True)
    assert encoder.norm_op is not None
    assert encoder.norm_op(4, **encoder.norm_op_kwargs).affine
    assert isinstance(encoder.nonlin(**encoder.nonlin_kwargs), nn.LeakyReLU)
    assert network.decoder.num_classes == 3
