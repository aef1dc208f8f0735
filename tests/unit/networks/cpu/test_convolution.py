"""Convolutions arranged for the CPU against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segwright.networks.cpu.convolution import conv_of_concat, upsample_by
from segwright.networks.cpu.upsampling import upsample_concat_conv


def compare(got: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    """Compare values and gradients."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.cos(torch.arange(wanted.numel(), dtype=torch.float32)).reshape(wanted.shape)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_pair_is_convolved_as_if_concatenated(dims: int, bias: bool) -> None:
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(5, 4, 3, padding=1, bias=bias).to(memory_format=layout)  # type: ignore[call-overload]
    first, second = (
        torch.randn(2, channels, *(6,) * dims).contiguous(memory_format=layout).requires_grad_() for channels in (2, 3)
    )
    got = conv_of_concat(conv, first, second)
    assert got.is_contiguous(memory_format=layout)
    compare(got, conv(torch.cat((first, second), 1)), [first, second, *conv.parameters()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_upsampling_equals_the_transposed_convolution(dims: int, bias: bool) -> None:
    stride = (1, 2, 2)[-dims:]
    upsample = (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(3, 2, stride, stride, bias=bias)
    x = torch.randn(2, 3, *(4,) * dims, requires_grad=True)
    compare(upsample_by(upsample, x), upsample(x), [x, *upsample.parameters()])


def test_a_frozen_bias_gets_no_gradient() -> None:
    upsample = nn.ConvTranspose2d(3, 2, 2, 2)
    upsample.bias.requires_grad_(False)  # type: ignore[union-attr]
    upsample_by(upsample, torch.randn(1, 3, 4, 4, requires_grad=True)).sum().backward()
    assert upsample.bias is not None
    assert upsample.bias.grad is None
    assert upsample.weight.grad is not None


def test_bf16_autocast_keeps_parameter_gradients_in_fp32() -> None:
    upsample = nn.ConvTranspose2d(3, 2, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = upsample_by(upsample, torch.randn(2, 3, 4, 4))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert upsample.bias is not None
    assert upsample.bias.grad is not None
    assert upsample.bias.grad.dtype == torch.float32


class DoubledConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as torch calls it)
        return 2 * super().forward(input)


class DoubledUpsampling(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        return 2 * super().forward(input, output_size)


def test_layers_derived_from_torchs_compute_their_own_way() -> None:
    x, skip = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 12, 12)
    for upsample in (nn.ConvTranspose2d(4, 4, 2, 2), DoubledUpsampling(4, 4, 2, 2)):
        torch.testing.assert_close(upsample_by(upsample, x), upsample(x), rtol=1e-5, atol=1e-5)
        for conv in (nn.Conv2d(8, 3, 3, padding=1), DoubledConv(8, 3, 3, padding=1)):
            wanted = conv(torch.cat((upsample(x), skip), 1))
            torch.testing.assert_close(upsample_concat_conv(upsample, conv, x, skip), wanted, rtol=1e-5, atol=1e-5)
            wanted = conv(torch.cat((x, skip[..., :6, :6]), 1))
            torch.testing.assert_close(conv_of_concat(conv, x, skip[..., :6, :6]), wanted, rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_may_pad() -> None:
    upsample, x = nn.ConvTranspose2d(3, 4, 3, 2, padding=1, output_padding=1), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(upsample_by(upsample, x), upsample(x), rtol=1e-5, atol=1e-5)
