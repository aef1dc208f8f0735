"""Depthwise convolutions on the CPU: outputs and gradients are those of torch's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.networks.cpu.depthwise import (
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseConvTranspose2d,
    DepthwiseConvTranspose3d,
)


def layers(kernel: tuple[int, ...], stride: tuple[int, ...], *, transposed: bool) -> tuple[nn.Module, nn.Module]:
    """Return our layer and torch's with the same weights, in float64."""
    options: dict[str, Any] = {"stride": stride, "padding": tuple(size // 2 for size in kernel), "groups": 4}
    if transposed:
        options["output_padding"] = tuple(step - 1 for step in stride)
    classes: Any = {
        (2, False): (DepthwiseConv2d, nn.Conv2d),
        (2, True): (DepthwiseConvTranspose2d, nn.ConvTranspose2d),
        (3, False): (DepthwiseConv3d, nn.Conv3d),
        (3, True): (DepthwiseConvTranspose3d, nn.ConvTranspose3d),
    }
    own, other = (cls(4, 4, kernel, **options).double() for cls in classes[len(kernel), transposed])
    other.load_state_dict(own.state_dict())
    return own, other


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return output and gradients of input and weights for a fixed gradient of the output."""
    x = x.clone().requires_grad_()
    out = layer(x)
    slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], slope)]


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 5, 3), (7, 1, 5), (3, 3), (5, 7), (1, 5)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_outputs_and_gradients_are_torch_s(kernel: tuple[int, ...], stride: tuple[int, ...], transposed: bool) -> None:
    size = (5, 6, 7)[-len(kernel) :]
    x = torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own, other = layers(kernel, stride[-len(kernel) :], transposed=transposed)
    for found, expected in zip(gradients(own, x), gradients(other, x), strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(own(x), other(x))


def test_bfloat16_is_computed_as_autocast_says() -> None:
    own, other = layers((3, 3, 3), (1, 1, 1), transposed=False)
    x = torch.randn(1, 4, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    own, other = own.float(), other.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = own(x.requires_grad_())
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    exact = torch.autograd.grad(other(x).square().sum(), other.parameters())
    for parameter, expected in zip(own.parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
