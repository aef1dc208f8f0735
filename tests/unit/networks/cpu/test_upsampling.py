"""Up-sampling merged into the convolution after it, against one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segwright.networks.build import build_network
from segwright.networks.cpu import upsampling
from segwright.networks.cpu.upsampling import upsample_concat_conv

CASES = [
    ((2, 2, 2), (3, 3, 3)),
    ((1, 2, 2), (3, 3, 3)),
    ((2, 2, 1), (1, 3, 3)),
    ((1, 2, 2), (1, 3, 3)),
    ((2, 2), (3, 3)),
    ((2, 1), (3, 1)),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "kernel"), CASES)
def test_values_and_all_gradients_are_the_same(
    stride: tuple[int, ...], kernel: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsampling, "WORTHWHILE", 100.0)
    torch.manual_seed(0)
    dims = len(stride)
    transposed, convolution = (nn.ConvTranspose2d, nn.Conv2d) if dims == 2 else (nn.ConvTranspose3d, nn.Conv3d)
    upsample = transposed(6, 4, stride, stride, bias=bias).double()  # type: ignore[arg-type]
    conv = convolution(4 + 3, 5, kernel, padding=[size // 2 for size in kernel], bias=bias).double()  # type: ignore[arg-type]
    shape = (3, 4, 2)[:dims]
    x = torch.randn(2, 6, *shape, dtype=torch.double, requires_grad=True)
    fine = [extent * step for extent, step in zip(shape, stride, strict=True)]
    skip = torch.randn(2, 3, *fine, dtype=torch.double, requires_grad=True)

    merged = upsample_concat_conv(upsample, conv, x, skip)
    expected = conv(torch.cat((upsample(x), skip), 1))

    torch.testing.assert_close(merged, expected)
    inputs = [x, skip, *upsample.parameters(), *conv.parameters()]
    upstream = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(merged, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("limit", [0.0, 100.0])
def test_a_whole_network_gives_the_same_either_way(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {
        "network_class_name": "PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": 3,
            "strides": [1, 2, 2],
            "n_conv_per_stage": 1,
            "n_conv_per_stage_decoder": 1,
            "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d",
            "norm_op_kwargs": {"affine": True},
            "nonlin": "torch.nn.LeakyReLU",
        },
    }
    network = build_network(block, 1, 2, deep_supervision=True).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(2, 1, 8, 8, 16, generator=torch.Generator().manual_seed(0))

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sum(level.sin().sum() for level in network(x)), list(network.parameters()))

    expected = gradients()
    monkeypatch.setattr(upsampling, "WORTHWHILE", limit)
    for got, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_wide_layers_are_merged_and_tiny_ones_are_not() -> None:
    def is_merged(extent: int, low: int, high: int) -> bool:
        x, skip = torch.empty(1, low, *(extent,) * 3), torch.empty(1, high, *(2 * extent,) * 3)
        upsample, conv = nn.ConvTranspose3d(low, high, 2, 2), nn.Conv3d(2 * high, high, 3, padding=1)
        return upsampling._is_worthwhile(upsample, conv, x, skip)

    assert is_merged(20, 4, 2)
    assert is_merged(8, 4, 4)
    assert not is_merged(4, 4, 2)
    assert is_merged(16, 320, 320)
    assert not is_merged(8, 320, 320), "merging the weights takes longer than it saves"


def test_kernels_it_cannot_merge_are_computed_apart() -> None:
    upsample, conv = nn.ConvTranspose2d(4, 2, 4, 4), nn.Conv2d(4, 3, 5, padding=2)
    x, skip = torch.randn(1, 4, 4, 4), torch.randn(1, 2, 16, 16)
    expected = conv(torch.cat((upsample(x), skip), 1))
    torch.testing.assert_close(upsample_concat_conv(upsample, conv, x, skip), expected)


def test_a_tracer_sees_plain_layers() -> None:
    pair = Pair()
    traced = torch.jit.trace(pair, (torch.randn(1, 4, 8, 8), torch.randn(1, 4, 16, 16)))  # type: ignore[no-untyped-call]
    x, skip = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 12, 12)
    torch.testing.assert_close(traced(x, skip), pair(x, skip), rtol=1e-5, atol=1e-5)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.upsample, self.conv = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return upsample_concat_conv(self.upsample, self.conv, x, skip)


def test_training_may_follow_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "WORTHWHILE", 100.0)
    upsampling._selections.cache_clear()
    upsample, conv = nn.ConvTranspose3d(4, 2, 2, 2), nn.Conv3d(4, 3, 3, padding=1)
    x, skip = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 2, 4, 4, 4)
    with torch.inference_mode():
        upsample_concat_conv(upsample, conv, x, skip)
    upsample_concat_conv(upsample, conv, x, skip).sum().backward()
    assert upsample.weight.grad is not None
