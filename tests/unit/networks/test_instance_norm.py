"""The fast instance norm against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from segwright.networks.norm import InstanceNorm2d, InstanceNorm3d, norm_leaky_relu

LAYOUTS = {
    "contiguous": (torch.contiguous_format, torch.contiguous_format),
    "channels_last": (torch.channels_last, torch.channels_last_3d),
}


def image(dims: int, layout: str, *, batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a random (batch, 5, *S) leaf tensor."""
    shape = (batch, 5, 4, 6, 3)[: dims + 2]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(dims), dtype=torch.float64) * 3 + 1
    return values.to(dtype).contiguous(memory_format=LAYOUTS[layout][dims - 2]).requires_grad_()


def layer(dims: int, *, affine: bool, dtype: torch.dtype = torch.float32) -> InstanceNorm2d | InstanceNorm3d:
    norm = (InstanceNorm2d if dims == 2 else InstanceNorm3d)(5, affine=affine, dtype=dtype)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0]))
            norm.bias.copy_(torch.linspace(-1, 1, 5))
    return norm


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    upstream = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape).to(out.dtype)
    return torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("slope", [None, 0.01, 0.2])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_values_and_gradients_equal_torchs(
    dims: int, layout: str, batch: int, affine: bool, slope: float | None
) -> None:
    x, norm = image(dims, layout, batch=batch), layer(dims, affine=affine)
    expected = functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    if slope is not None:
        expected = functional.leaky_relu(expected, slope)
    out = norm(x) if slope is None else norm_leaky_relu(norm, x, slope)
    assert out.stride() == x.stride()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    inputs = [x, *norm.parameters()]
    for got, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_pass_gradcheck(dims: int, layout: str) -> None:
    x = image(dims, layout, batch=2, dtype=torch.float64)
    norm = layer(dims, affine=True, dtype=torch.float64)

    def function(sample: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        clone = layer(dims, affine=True, dtype=torch.float64)
        del clone.weight, clone.bias
        clone.weight, clone.bias = weight, bias  # type: ignore[assignment]
        return norm_leaky_relu(clone, sample, 0.3)

    assert torch.autograd.gradcheck(function, (x, norm.weight, norm.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_without_gradients_the_values_are_the_same_and_take_no_memory(
    dims: int, layout: str, dtype: torch.dtype
) -> None:
    x, norm = image(dims, layout, dtype=dtype), layer(dims, affine=True)
    expected, alone = norm_leaky_relu(norm, x, 0.01).detach(), norm(x).detach()
    with torch.inference_mode():
        given = x.clone()
        assert torch.equal(norm(given), alone)
        assert torch.equal(given, x)  # a norm without LeakyReLU leaves its input as it is
        out = norm_leaky_relu(norm, given, 0.01)
    assert torch.equal(out, expected)
    assert out.data_ptr() == given.data_ptr()


def test_a_gradient_in_another_layout_is_taken() -> None:
    x, norm = image(3, "channels_last"), layer(3, affine=True)
    upstream = torch.randn(x.shape)
    (got,) = torch.autograd.grad(norm(x), x, upstream)
    (wanted,) = torch.autograd.grad(norm(x), x, upstream.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(got, wanted)


def test_bf16_keeps_its_dtype_and_stays_near_fp32() -> None:
    x, norm = image(3, "channels_last"), layer(3, affine=True)
    out = norm_leaky_relu(norm, x.detach().bfloat16().requires_grad_(), 0.01)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm_leaky_relu(norm, x, 0.01), rtol=2e-2, atol=3e-2)
    grads = gradients(out, list(norm.parameters()))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]


def test_frozen_parameters_get_no_gradient() -> None:
    x, norm = image(2, "channels_last"), layer(2, affine=True).requires_grad_(False)
    norm(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None


def test_a_single_voxel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        layer(2, affine=True)(torch.zeros(1, 5, 1, 1))


def test_other_devices_and_running_statistics_take_torchs_way() -> None:
    tracking = InstanceNorm2d(5, track_running_stats=True)
    x = image(2, "channels_last")
    expected = functional.instance_norm(x, torch.zeros(5), torch.ones(5), use_input_stats=True)
    torch.testing.assert_close(tracking(x), expected)
    assert tracking.running_mean is not None
    assert tracking.running_mean.any()
    assert layer(3, affine=True).to("meta")(torch.empty(1, 5, 2, 2, 2, device="meta")).shape == (1, 5, 2, 2, 2)


def test_names_are_those_of_torch() -> None:
    assert list(layer(3, affine=True).state_dict()) == ["weight", "bias"]
    assert isinstance(layer(3, affine=True), nn.InstanceNorm3d)
