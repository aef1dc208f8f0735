"""Choose the floating-point precision of prediction: the requested one, or the fastest for a device."""

from __future__ import annotations

import torch

from segwright.core.device import CPU, PRECISIONS, compute_dtype, has_amx
from segwright.networks.cpu.library import library


def uses_fp16_kernels(device: torch.device, precision: str) -> bool:
    """Return whether the CPU kernels convolve in float16, which is faster than float32 and more accurate than bf16.

    A matrix unit (AMX) multiplies more of bf16 at once.
    """
    wanted = precision == "fp16" or (precision == "auto" and not has_amx())
    return wanted and device.type == CPU and library(fp16=True) is not None


def used_precision(device: torch.device, precision: str = "auto") -> str:
    """Return the precision (fp32, bf16 or fp16) that networks use on a device for the option `precision`.

    On a CPU without a matrix unit for bf16 `auto` takes float16 or float32 where there are kernels: they need an eighth
    of the multiplications, and bf16 saves half of their time.

    Raises:
        ConfigError: the precision is unknown, or not one of the device.
    """
    if uses_fp16_kernels(device, precision):
        return "fp16"
    if precision == "auto" and device.type == CPU and library() is not None and not has_amx():
        return "fp32"
    used = compute_dtype(device, precision)
    return next(name for name, dtype in PRECISIONS.items() if dtype == used)
