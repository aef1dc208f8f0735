"""Decide whether the fused instance norm works on a device, by comparing it with torch's."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from logging import getLogger
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from segwright.networks.gpu.fused_norm import fused_norm

TOLERANCE: Final = MappingProxyType({torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3})
"""Largest error of values and gradients, as a share of the largest one: about two roundings, by dtype."""

_EPS, _SLOPE = 1e-5, 0.01
_SHAPES: Final = ((2, 32, 16, 16, 20), (1, 80, 9, 10, 11))
"""Images with several parts, and with several blocks of channels that are not full; the second has a residual."""

logger = getLogger(__name__)


@cache
def works_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the fused norm gives torch's results for images of `dtype`; log why not, once per process."""
    reason = _failure(device, dtype)
    if reason is not None:
        logger.warning("torch's own instance norm is used on %s, not the fused one: %s", device, reason)
    return reason is None


def _failure(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the fused norm cannot be used; None if it can."""
    if dtype not in TOLERANCE:
        return f"it does not support {dtype}"
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    try:
        for index, shape in enumerate(_SHAPES):
            error = largest_error(device, dtype, shape, has_residual=index == 1)
            if not error <= TOLERANCE[dtype]:  # NaN is a failure, too
                return f"in {dtype} its results differ by {error:.1e}, where {TOLERANCE[dtype]:.0e} is allowed"
    except Exception as error:  # Triton's compiler and launcher raise errors of many kinds
        lines = str(error).strip().splitlines() or [""]
        return f"Triton failed with {type(error).__name__}: {lines[0]:.200}"
    return None


def largest_error(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], *, has_residual: bool) -> float:
    """Return the largest error of values and gradients against torch in float32, as a share of the largest value.

    Args:
        device: of the computation.
        dtype: of image and residual.
        shape: of the image (B, C, *S).
        has_residual: add a residual.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x, residual, upstream = (_noise(shape, device, dtype, seed=seed) for seed in range(3))
        weight, bias = (_noise((shape[1],), device, torch.float32, seed=seed) for seed in (3, 4))
        inputs = [x, weight, bias, *([residual] if has_residual else [])]
        fused = fused_norm(x, weight, bias, residual if has_residual else None, _EPS, _SLOPE)
        exact = functional.instance_norm(x.float(), weight=weight, bias=bias, eps=_EPS)
        exact = functional.leaky_relu(exact + residual.float() if has_residual else exact, _SLOPE)
        results = (fused, *torch.autograd.grad(fused, inputs, upstream))
        expected = (exact, *torch.autograd.grad(exact, inputs, upstream.float()))
        errors = [_error(got, wanted) for got, wanted in zip(results, expected, strict=True)]
        return float(torch.stack(errors).max())


def _error(got: Tensor, wanted: Tensor) -> Tensor:
    wanted = wanted.detach().float()
    return (got.detach().float() - wanted).abs().max() / wanted.abs().max()


def _noise(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, *, seed: int) -> Tensor:
    """Return repeatable random numbers with mean 1, which require gradients; an image is channels-last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 1
    return values.to(device, dtype).requires_grad_()
