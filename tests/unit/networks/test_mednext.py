"""MedNeXt: the numbers of weights of the paper, shapes in 2D and 3D, the plan's or a U-Net's topology, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segwright.core.errors import ConfigError
from segwright.networks.build import ArchitectureSpec, build_from_spec, nnunet_spec, set_deep_supervision
from segwright.networks.mednext.arguments import parse_arguments, resolve_arguments
from segwright.networks.mednext.network import MedNeXt, MedNeXtBlock, upsampling
from segwright.networks.mednext.sizes import SIZES, architecture_block

U_NET_PLAN: dict[str, Any] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 5],
    "strides": [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 2, *[[1, 2, 2]] * 2],
    "n_conv_per_stage": [2] * 6,
    "n_conv_per_stage_decoder": [2] * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
}
PLANNED = architecture_block(SIZES["S"].at(3), dims=2, kernel_sizes=[(5, 5)] * 3, strides=[(1, 1), (2, 2), (2, 2)])

HUGE = {"features_per_stage": [4000] * 3, "expansion_per_stage": [100] * 3}


def build(plan: dict[str, Any], patch_size: tuple[int, ...], *, heads: int = 3, **kwargs: Any) -> nn.Module:
    """Build the network by its name, two image channels."""
    spec = ArchitectureSpec(reference="mednext", kwargs=kwargs)
    generator = torch.Generator().manual_seed(3)
    return build_from_spec(spec, {"arch_kwargs": plan}, 2, heads, patch_size, True, generator=generator)


def on_meta(size: str, kernel_size: int) -> MedNeXt:
    five = {"n_stages": 5, "strides": [[1] * 3, *[[2] * 3] * 4], "kernel_sizes": [[3] * 3] * 5}
    arguments = resolve_arguments({**five, "size": size, "kernel_size": kernel_size}, (128,) * 3)
    with torch.device("meta"):
        return MedNeXt(1, 2, parse_arguments(arguments, 3), deep_supervision=True)


@pytest.mark.parametrize(
    ("size", "kernel_size", "millions"),
    [
        *(("S", 3, 5.6), ("S", 5, 5.9), ("B", 3, 10.5), ("B", 5, 11.0)),
        *(("M", 3, 17.6), ("M", 5, 18.3), ("L", 3, 61.8), ("L", 5, 63.0)),
    ],
)
def test_number_of_weights_is_the_paper_s(size: str, kernel_size: int, millions: float) -> None:
    found = sum(tensor.numel() for tensor in on_meta(size, kernel_size).parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("plan", "patch_size", "levels"),
    [
        (U_NET_PLAN, (4, 32, 32), [(4, 32, 32), (4, 16, 16), (2, 8, 8), (1, 4, 4)]),
        (PLANNED["arch_kwargs"], (12, 20), [(12, 20), (6, 10)]),
        ({}, (16, 32), [(16, 32), (8, 16), (4, 8)]),
    ],
    ids=["3d plan of a U-Net", "own plan", "without plan"],
)
def test_logits_of_all_resolutions(
    plan: dict[str, Any], patch_size: tuple[int, ...], levels: list[tuple[int, ...]]
) -> None:
    network = build(plan, patch_size, heads=4)
    image = torch.randn(1, 2, *patch_size)
    with torch.no_grad():
        outputs = network(image)
        assert [tuple(level.shape[1:]) for level in outputs] == [(4, *level) for level in levels]
        set_deep_supervision(network, False)
        assert torch.equal(network(image), outputs[0])


def test_kernel_of_a_coarse_axis_stays_one() -> None:
    network = build(U_NET_PLAN, (8, 64, 64), size="B", kernel_size=5)
    assert isinstance(network, MedNeXt)
    kernels = [stage[0].depthwise.kernel_size for stage in network.encoder_stages]  # type: ignore[index]
    assert kernels == [(1, 5, 5), *[(5, 5, 5)] * 4]
    assert network.downsamplings[0].depthwise.stride == (1, 2, 2)
    assert network.encoder_stages[2][0].expand.out_channels == 4 * 128  # type: ignore[index]


def test_block_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    block = MedNeXtBlock(nn.Conv2d(4, 4, 3, padding=1, groups=4), 4, 3)
    x = torch.randn(2, 4, 6, 7)
    hidden = F.group_norm(block.depthwise(x), 4, block.norm.weight, block.norm.bias)
    hidden = F.gelu(F.conv2d(hidden, block.expand.weight, block.expand.bias))
    expected = x + F.conv2d(hidden, block.compress.weight, block.compress.bias)
    torch.testing.assert_close(block(x), expected)


def test_upsampling_keeps_voxels_where_downsampling_takes_them() -> None:
    block = upsampling(1, 1, (3, 3), (2, 1), 2)
    residual = block.residual
    assert isinstance(residual, nn.ConvTranspose2d)
    nn.init.ones_(residual.weight)
    nn.init.zeros_(residual.bias)  # type: ignore[arg-type]
    x = torch.arange(1.0, 7.0).view(1, 1, 3, 2)
    found: Tensor = residual(x)
    assert found.shape == (1, 1, 6, 2)
    assert torch.equal(found[:, :, ::2], x)
    assert torch.count_nonzero(found[:, :, 1::2]) == 0


def test_initial_weights_are_those_of_the_seed() -> None:
    first, second = build(PLANNED["arch_kwargs"], (8, 8)), build(PLANNED["arch_kwargs"], (8, 8))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert first.stem.weight.std() > 0  # type: ignore[operator,union-attr]


@pytest.mark.parametrize(
    ("plan", "kwargs", "words"),
    [
        (U_NET_PLAN, {"size": "XL"}, "unknown size 'XL'; choose from S, B, M, L"),
        (U_NET_PLAN, {"sise": "S"}, "unknown argument 'sise'; did you mean 'size'"),
        (U_NET_PLAN, {"kernel_size": 4}, r"kernel_sizes has the entry \[1, 4, 4\]; every size must be odd"),
        (PLANNED["arch_kwargs"], {"size": "M"}, "size cannot be changed, the plan is for one size"),
        ({**PLANNED["arch_kwargs"], "blocks_per_stage": [2, 2]}, {}, "blocks_per_stage has 2 entries"),
        ({**PLANNED["arch_kwargs"], "strides": [[2, 2]] * 3}, {}, r"the first stride is \[2, 2\]; expected 1"),
        ({**PLANNED["arch_kwargs"], "blocks_per_stage": [900] * 3}, {}, "at most 1000 are allowed"),
        ({**PLANNED["arch_kwargs"], **HUGE}, {}, "network 'mednext' has .* million weights, at most"),
        ({"blocks_per_stage": [2, 2, 2]}, {}, "lack n_stages, features_per_stage"),
    ],
)
def test_arguments_that_cannot_be_built_are_refused(plan: dict[str, Any], kwargs: dict[str, Any], words: str) -> None:
    patch_size = (16, 16) if "blocks_per_stage" in plan else (8, 64, 64)
    with pytest.raises(ConfigError, match=words):
        build(plan, patch_size, **kwargs)


def test_nnunet_has_no_such_network() -> None:
    with pytest.raises(ConfigError, match="nnU-Net has no network 'mednext'"):
        nnunet_spec(ArchitectureSpec(reference="mednext"), PLANNED, (16, 16))
