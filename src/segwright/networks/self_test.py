"""Time a 3D convolution and a norm on a device in each precision, and compare their results with float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segwright.core.device import CPU, PRECISIONS, autocast, available_precisions, memory_format
from segwright.networks.cpu.dispatch import CpuKernelMode
from segwright.networks.cpu.library import library
from segwright.networks.norm import InstanceNorm3d

CHANNELS: Final = 32
"""Input and output channels of both layers, as in the first stage of nnU-Net's networks."""

SAMPLES: Final = 2
"""nnU-Net's smallest batch; torch computes small images alone without oneDNN, ten times slower."""

SIZES: Final = (16, 32, 64)
"""Extents of the cube that is computed: the first for which a layer takes `LONG_ENOUGH_S`, or the last."""

LONG_ENOUGH_S: Final = 0.02
"""Time of a layer that can be measured; shorter ones are mostly overhead."""

TEST_S: Final = 3.5
"""Time for all measurements of a device, in seconds."""

TOLERANCES: Final = {"fp32": 0.002, "fp16": 0.05, "bf16": 0.05}
"""Errors that rounding explains, see `LayerTest.conv_error`: fp32 may be TF32, and fp16 may be Winograd's, whose
transforms take digits (0.011 on white noise; bf16 0.003, fp32 2e-6)."""

_CHECKED: Final = 8
"""Extent of the part of the convolution's output, and number of the norm's channels, that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTest:
    """Speed and error of the layers in one precision.

    Attributes:
        precision: fp32, bf16 or fp16.
        kernels: torch's, with gradients as in training, or the compiled ones for prediction on the CPU.
        size: extent of the cube.
        conv_gflops: billions of multiplications and additions of the convolution per second.
        conv_error: root mean square of the differences from float64, relative to the deviation of the result.
        norm_gb_per_s: gigabytes that the norm reads and writes per second, each value once in each direction.
        norm_error: as `conv_error`.
    """

    precision: str
    kernels: Literal["torch", "compiled"]
    size: int
    conv_gflops: float
    conv_error: float
    norm_gb_per_s: float
    norm_error: float

    @property
    def is_right(self) -> bool:
        """Whether the errors are those of rounding."""
        tolerance = TOLERANCES[self.precision]
        return self.conv_error <= tolerance and self.norm_error <= tolerance  # not for NaN


def run_layers(
    device: torch.device, *, seconds: float = TEST_S, now: Callable[[], float] = time.perf_counter
) -> tuple[LayerTest, ...]:
    """Measure the layers on a device in every precision, torch's before the compiled kernels of the CPU.

    Args:
        device: the device.
        seconds: for all measurements together.
        now: a monotonic clock in seconds.
    """
    variants: list[tuple[str, Literal["torch", "compiled"]]] = [
        (name, "torch") for name in available_precisions(device)
    ]
    if device.type == CPU:
        compiled = {"fp32": library() is not None, "fp16": library(fp16=True) is not None}
        variants += [(name, "compiled") for name, is_there in compiled.items() if is_there]
    share = seconds / len(variants)
    return tuple(_measure(name, kernels, device, share, now) for name, kernels in variants)


def _measure(
    precision: str,
    kernels: Literal["torch", "compiled"],
    device: torch.device,
    seconds: float,
    now: Callable[[], float],
) -> LayerTest:
    trains = kernels == "torch"
    conv = nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    norm = InstanceNorm3d(CHANNELS, affine=True)
    for index, parameter in enumerate((conv.weight, norm.weight, norm.bias)):
        nn.init.normal_(parameter, std=0.05 if index == 0 else 1.0, generator=torch.Generator().manual_seed(index))
    weights = [each.detach().double() for each in (conv.weight, norm.weight, norm.bias)]
    layout = memory_format(device, 3)
    conv, norm = (layer.to(device, memory_format=layout).requires_grad_(trains) for layer in (conv, norm))  # type: ignore[call-overload]
    end = now() + seconds
    with _computing(device, precision, kernels):
        for size in SIZES:
            image = torch.randn((SAMPLES, CHANNELS, size, size, size), generator=torch.Generator().manual_seed(size))
            x = image.to(device).contiguous(memory_format=layout)
            halved = x if kernels == "compiled" else x.to(PRECISIONS[precision])
            conv_s, conv_out = _shortest(conv, x, trains=trains, until=(end + now()) / 2, now=now)
            norm_s, norm_out = _shortest(norm, halved, trains=trains, until=end, now=now)
            left = end - now()
            if conv_s >= LONG_ENOUGH_S or size == SIZES[-1] or left < 32 * (conv_s + norm_s):
                break
    passes = 3 if trains else 1
    flops = passes * 2 * conv.weight.numel() * SAMPLES * size**3
    moved = (2 if trains else 1) * 2 * halved.numel() * halved.element_size()
    return LayerTest(
        precision=precision,
        kernels=kernels,
        size=size,
        conv_gflops=flops / conv_s / 1e9,
        conv_error=_conv_error(conv_out, image, weights[0]),
        norm_gb_per_s=moved / norm_s / 1e9,
        norm_error=_norm_error(norm_out, halved, *weights[1:]),
    )


@contextmanager
def _computing(device: torch.device, precision: str, kernels: str) -> Iterator[None]:
    with ExitStack() as stack:
        if kernels == "compiled":
            stack.enter_context(torch.inference_mode())
            stack.enter_context(CpuKernelMode(fp16=precision == "fp16"))
        else:
            stack.enter_context(autocast(device, precision))
        yield


def _shortest(
    layer: nn.Module, x: Tensor, *, trains: bool, until: float, now: Callable[[], float]
) -> tuple[float, Tensor]:
    """Return the shortest time of a layer after a first run, at least one, and its output."""
    x = x.detach().requires_grad_(trains)
    times: list[float] = []
    while len(times) < 2 or (now() < until and len(times) < 10):
        start = now()
        out: Tensor = layer(x)
        if trains:
            torch.autograd.backward(out, torch.ones_like(out))
            assert x.grad is not None
        last = out if x.grad is None else x.grad
        float(last[0, 0, 0, 0, 0])  # waits for a GPU
        times.append(now() - start)
        x.grad = None
    return min(times[1:]), out.detach()


def _conv_error(out: Tensor, image: Tensor, weight: Tensor) -> float:
    """Compare the corner of the output that lies furthest in memory: a convolution of the corner of the image."""
    expected = F.conv3d(F.pad(image[..., -_CHECKED:, -_CHECKED:, -_CHECKED:].double(), (0, 1) * 3), weight)
    inside = slice(1 - _CHECKED, None)  # the first voxel has a neighbour outside the part
    found = out[..., inside, inside, inside].double().cpu()
    return _relative_error(found, expected)


def _norm_error(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    part, of_part = (each[:, :_CHECKED].detach().cpu().double() for each in (x, out))
    return _relative_error(of_part, F.instance_norm(part, weight=weight[:_CHECKED], bias=bias[:_CHECKED]))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())
