"""Faster layers: where they compute, where they keep out, and that nobody sees a difference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.networks.blocks import BasicBlockD, ConvStack, LayerOptions
from segwright.networks.cpu import direct, kernels
from segwright.networks.cpu import dispatch as inference
from segwright.networks.cpu import library as compiled
from segwright.networks.cpu.dispatch import CpuKernelMode
from segwright.networks.cpu.upsampling import upsample_concat_conv
from segwright.networks.norm import InstanceNorm2d, InstanceNorm3d

needs_kernels = pytest.mark.skipif(compiled.library() is None, reason="the kernels are not compiled for this processor")
OPTIONS = {
    dims: LayerOptions(
        conv_op=(nn.Conv2d, nn.Conv3d)[dims - 2],
        conv_bias=True,
        norm_op=(InstanceNorm2d, InstanceNorm3d)[dims - 2],
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    for dims in (2, 3)
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels were called, in order."""
    found: list[str] = []

    def counted(name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            found.append(name)
            return kernel(*args, **kwargs)

        return call

    names = {
        kernels: ("convolve", "convolve_and_norm", "compute_norm", "instance_norm"),
        direct: ("convolve_pointwise", "convolve_few_channels", "convolve_few_channels_and_norm", "upsample"),
    }
    for module, functions in names.items():
        for name in functions:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return found


class Subclass(Tensor):
    """A tensor with a type of its own, as MONAI has."""


def both_ways(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a module gives without and with faster layers."""
    with torch.inference_mode():
        plain = module(*inputs).clone()
        with CpuKernelMode():
            return plain, module(*inputs)


def image_of(dims: int, channels: int = 16, size: int = 24) -> Tensor:
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    return torch.randn(8, channels, *(size,) * dims).contiguous(memory_format=layout)


@needs_kernels
@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_of_ours_is_computed_by_the_kernels(dims: int, calls: list[str]) -> None:
    class Decoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kernel, unit = (3,) * dims, (1,) * dims
            self.residual = BasicBlockD(16, 32, kernel, unit, OPTIONS[dims])
            self.up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2](16, 32, 2, 2)
            self.stack = ConvStack(2, 64, 32, kernel, unit, OPTIONS[dims])
            self.head = OPTIONS[dims].conv_op(32, 3, 1)

        def forward(self, coarse: Tensor, x: Tensor) -> Tensor:
            return self.stack.forward_up(self.up, coarse, self.residual(x), self.head)

    plain, fast = both_ways(Decoding(), image_of(dims, size=24), image_of(dims, size=48))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-4)
    # Of the shortcut, a 1x1 convolution to many channels, only the norm; then two layers of the block and of the stack.
    block, stack = ["instance_norm", *["convolve_and_norm"] * 2], ["upsample", *["convolve_and_norm"] * 2]
    assert calls == [*block, *stack, "convolve_pointwise"]


@needs_kernels
def test_a_norm_before_a_convolution_of_the_kernels_is_applied_there(calls: list[str]) -> None:
    for channels, first in ((6, "compute_norm"), (2, "convolve_few_channels_and_norm")):
        calls.clear()
        stack = ConvStack(3, channels, 32, (3, 3, 3), (1, 1, 1), OPTIONS[3])
        plain, fast = both_ways(stack, image_of(3, channels=channels))
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-4)
        assert calls == [first, "convolve_and_norm", "convolve_and_norm"]


@needs_kernels
@pytest.mark.parametrize("part", ["convs", "convs.0", "convs.0.conv", "convs.1"])
def test_whoever_looks_at_a_layer_sees_it(part: str, calls: list[str]) -> None:
    stack, seen = ConvStack(2, 16, 32, (3, 3, 3), (1, 1, 1), OPTIONS[3]), []
    stack.get_submodule(part).register_forward_hook(lambda module, inputs, output: seen.append(output))
    plain, fast = both_ways(stack, image_of(3))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-4)
    assert len(seen) == 2
    assert "convolve_and_norm" not in calls


class Doubled(nn.Conv3d):
    """A convolution with a way of its own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


@needs_kernels
@pytest.mark.parametrize("layer", ["conv", "head"])
def test_layers_derived_from_torchs_keep_their_way(layer: str) -> None:
    class Decoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose3d(16, 32, 2, 2)
            self.stack = ConvStack(2, 64, 32, (3, 3, 3), (1, 1, 1), OPTIONS[3])
            self.head = (Doubled if layer == "head" else nn.Conv3d)(32, 3, 1)
            if layer == "conv":
                self.stack.convs[1].conv = Doubled(32, 32, 3, padding=1)

        def forward(self, coarse: Tensor, x: Tensor) -> Tensor:
            return self.stack.forward_up(self.up, coarse, x, self.head)

    plain, fast = both_ways(Decoding(), image_of(3, size=12), image_of(3, channels=32))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-4)


@needs_kernels
def test_a_single_voxel_has_no_norm() -> None:
    stack = ConvStack(1, 16, 16, (3, 3, 3), (2, 2, 2), OPTIONS[3])
    for context in (nullcontext(), CpuKernelMode()):
        with torch.inference_mode(), context, pytest.raises(ValueError, match="more than 1 spatial element"):
            stack(torch.randn(300, 16, 2, 2, 2))


@needs_kernels
@pytest.mark.parametrize(
    ("conv", "kernel"),
    [
        (nn.Conv3d(16, 16, 3, padding=1, stride=2), "convolve"),
        (nn.Conv3d(16, 16, 3, padding=1, stride=(1, 2, 2)), "convolve"),
        (nn.Conv3d(16, 16, 3, padding=1, stride=(2, 1, 1)), "convolve"),
        (nn.Conv3d(16, 3, 1), "convolve_pointwise"),
        (nn.Conv3d(3, 16, 3, padding=1), "convolve_few_channels"),
        (nn.Conv3d(1, 16, (1, 3, 3), padding="same", bias=False), "convolve_few_channels"),
        (nn.ConvTranspose3d(16, 32, 2, stride=2), "upsample"),
        (nn.ConvTranspose3d(16, 16, (1, 2, 2), stride=(1, 2, 2), bias=False), "upsample"),
    ],
    ids=str,
)
def test_single_layers_are_computed_by_the_kernels(conv: nn.Conv3d, kernel: str, calls: list[str]) -> None:
    plain, fast = both_ways(conv, image_of(3, channels=conv.in_channels))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    assert calls == [kernel]


@needs_kernels
def test_strides_that_fill_their_tiles_badly_are_torchs(calls: list[str]) -> None:
    plain, fast = both_ways(nn.Conv3d(16, 16, 3, padding=1, stride=2), image_of(3, size=18))
    assert torch.equal(fast, plain)
    assert calls == []


@needs_kernels
def test_a_network_of_yours_is_computed_by_the_kernels(calls: list[str]) -> None:
    yours = nn.Sequential(
        nn.Conv3d(16, 32, 3, padding="same"), nn.ReLU(), nn.Conv3d(32, 16, (1, 3, 3), padding=(0, 1, 1))
    )
    plain, fast = both_ways(yours, image_of(3))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    assert calls == ["convolve"] * 2


@needs_kernels
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv3d(16, 16, 3, padding=1, stride=3),
        nn.Conv3d(16, 16, 3, padding=1, stride=(1, 1, 2)),
        nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1), stride=(2, 1, 1)),
        nn.Conv3d(16, 16, 3, stride=2),
        nn.Conv3d(16, 3, 1, stride=2),
        nn.Conv3d(16, 32, 1),
        nn.Conv3d(16, 16, 3, padding=2, dilation=2),
        nn.Conv3d(16, 16, 3, padding=1, groups=2),
        nn.Conv3d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv3d(16, 16, 3),
        nn.Conv3d(16, 16, 3, padding=(1, 1, 0)),
        nn.Conv3d(16, 16, 5, padding=2),
        nn.Conv3d(16, 16, (3, 3, 1), padding=(1, 1, 0)),
        nn.Conv3d(16, 12, 3, padding=1),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.Conv3d(6, 16, 3, padding=1),
        nn.Conv3d(2, 12, 3, padding=1),
        nn.Conv3d(2, 16, 3, padding=1, stride=2),
        nn.Conv3d(2, 16, 3),
        nn.ConvTranspose3d(16, 16, 3, stride=2),
        nn.ConvTranspose3d(16, 16, 2, stride=2, padding=1),
        nn.ConvTranspose3d(16, 16, 2, stride=2, output_padding=1),
        nn.ConvTranspose3d(16, 16, 2, stride=2, groups=2),
        nn.ConvTranspose3d(16, 16, 2, stride=2, dilation=2),
        nn.ConvTranspose3d(16, 12, 2, stride=2),
        nn.ConvTranspose3d(12, 16, 2, stride=2),
    ],
    ids=str,
)
def test_other_convolutions_are_torchs(module: nn.Conv3d, calls: list[str]) -> None:
    image = image_of(3, channels=module.in_channels)
    if isinstance(module, nn.Conv1d):
        image = image.flatten(2)
    plain, fast = both_ways(module, image)
    assert torch.equal(fast, plain)
    assert calls == []


@pytest.mark.parametrize("reason", ["gradients", "float64", "autocast", "few tiles", "no library", "subclass"])
def test_they_keep_out(reason: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv3d(16, 16, 3, padding=1)
    image = image_of(3, size=4) if reason == "few tiles" else image_of(3)
    if reason == "float64":
        conv, image = conv.double(), image.double()
    if reason == "subclass":
        image = image.as_subclass(Subclass)
    if reason == "no library":
        monkeypatch.setattr(inference, "library", lambda: None)
    with (
        torch.set_grad_enabled(reason == "gradients"),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=reason == "autocast"),
    ):
        plain = conv(image)
        with CpuKernelMode():
            fast = conv(image)
    assert torch.equal(fast, plain)
    assert calls == []


@needs_kernels
@pytest.mark.parametrize("dims", [2, 3])
def test_in_bf16_the_norms_alone_are_computed_by_the_kernels(dims: int, calls: list[str]) -> None:
    stack = ConvStack(2, 16, 32, (3,) * dims, (1,) * dims, OPTIONS[dims])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, fast = both_ways(stack, image_of(dims))
    assert fast.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(fast, plain, rtol=2e-2, atol=5e-2)
    assert calls == ["instance_norm"] * 2


@needs_kernels
def test_a_traced_network_is_torchs(calls: list[str]) -> None:
    conv, image = nn.Conv3d(16, 16, 3, padding=1), image_of(3)
    with torch.no_grad(), CpuKernelMode():
        traced = torch.jit.trace(conv, image, check_trace=False)  # type: ignore[no-untyped-call]
    assert "conv" in str(traced.graph)
    assert calls == []


@needs_kernels
@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_without_a_batch_is_torchs(dims: int, calls: list[str]) -> None:
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2](16, 16, 3, padding=1)
    plain, fast = both_ways(conv, image_of(dims, size=30)[0])
    assert torch.equal(fast, plain)
    assert calls == []


@needs_kernels
def test_a_skip_of_another_size_is_refused() -> None:
    up, conv = nn.ConvTranspose3d(16, 16, 2, 2), nn.Conv3d(32, 16, 3, padding=1)
    with torch.inference_mode(), CpuKernelMode(), pytest.raises(ValueError, match="cannot be concatenated"):
        upsample_concat_conv(up, conv, image_of(3, size=12), image_of(3, size=25))


@needs_kernels
def test_a_bias_of_another_size_is_refused() -> None:
    with torch.inference_mode(), CpuKernelMode(), pytest.raises(RuntimeError, match="bias"):
        torch.conv3d(image_of(3), torch.zeros(16, 16, 3, 3, 3), torch.zeros(8), padding=1)


@needs_kernels
def test_weights_are_transformed_once_while_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    transformed: list[Tensor] = []

    def counted(weight: Tensor, *filters: Any) -> Tensor:
        transformed.append(weight)
        return points(weight, *filters)

    points = kernels._transform_weight
    monkeypatch.setattr(kernels, "_transform_weight", counted)
    conv, image, layers = nn.Conv3d(16, 16, 3, padding=1), image_of(3), CpuKernelMode()
    with torch.inference_mode():
        for _ in range(2):
            with layers:
                first = conv(image)
        assert len(transformed) == 1
        conv.weight.data.mul_(2)  # which torch's own count of changes does not tell
        with layers:
            second = conv(image)
    torch.testing.assert_close(second - conv.bias.view(-1, 1, 1, 1), 2 * (first - conv.bias.view(-1, 1, 1, 1)))
    assert len(transformed) == 2


@needs_kernels
def test_few_transformed_weights_are_kept() -> None:
    image, convs = image_of(3), [nn.Conv3d(16, 16, 3, padding=1) for _ in range(3)]
    library = compiled.library(16 // 2)
    assert library is not None
    size = kernels._transform_weight(convs[0].weight, kernels._F4, kernels._F4, library).nbytes
    cache = kernels.WinogradWeightCache(max_bytes=2 * size)
    with torch.inference_mode():
        for conv in (*convs, *convs):
            kernels.convolve([image], conv.weight, conv.bias, cache=cache)
            kernels.convolve([image], conv.weight.clone(), conv.bias, cache=cache)
    assert sum(points.nbytes for _, points in cache._entries.values()) <= 2 * size
    assert len(cache._entries) == 1
