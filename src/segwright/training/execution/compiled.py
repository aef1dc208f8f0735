"""Compile network and loss into one function with torch.compile, and compare it with the plain ones on a batch.

Array letters: B samples, C channels, S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FunctionType, MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from segwright.core.device import compute_dtype, generator_devices
from segwright.training.execution.step import LossFunction, StepParts, StepSettings, compute_gradients, plain_loss
from segwright.training.losses.builtin import Outputs

LOSS_TOLERANCES: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
)
GRADIENT_TOLERANCES: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.5}
)
"""Largest relative difference between the plain and the compiled loss, and gradient of a parameter, by the dtype of
convolutions. In the first layers of a 2D U-Net on a CPU, after ten steps with random labels, the plain gradient had an
error of 0.4 % in float32 and 33 % in bfloat16, the compiled one in float32 of 0.1 % (against float64)."""

GRADIENT_FLOOR: Final = 0.1
"""A tensor's gradient may differ by the tolerance times its own norm, plus this share of the whole gradient's: biases
in front of a norm layer have a gradient of rounding errors alone."""

Gradients = Mapping[str, Tensor]
"""Gradients by the name of the parameter."""

GRAPH_CALLS: Final = 3
"""Calls until a CUDA graph is replayed: torch warms up in the first and captures in the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A batch that was computed in both ways; the network has the plain gradients.

    Attributes:
        loss: the plain one.
        is_finite: whether loss and gradients of the plain way are finite, so that they can be compared.
        problem: how the compiled way differs by more than the tolerance; empty if it does not.
    """

    loss: Tensor
    is_finite: bool
    problem: str


def compile_loss(parts: StepParts, settings: StepSettings, *, graphs: bool) -> LossFunction:
    """Return a function that compiles network and loss when it is first called, for the shapes of that call.

    The network stays as it is: the function uses its weights, and differentiating gives them their gradients. torch
    compiles again if attributes of the network or the loss change on which the code depends.

    Args:
        parts: of the step.
        settings: of the step.
        graphs: let forward and backward pass each run as one CUDA graph.
    """
    dtype = compute_dtype(settings.device, settings.precision)
    device_type, is_mixed = settings.device.type, dtype != torch.float32
    network, loss_function = parts.network, parts.loss

    def loss_of_batch(data: Tensor, target: Outputs) -> Tensor:
        context: AbstractContextManager[object] = nullcontext()
        if is_mixed:
            context = torch.autocast(device_type, dtype=dtype)
        with context:
            output = network(data)
        return loss_function(output, target)

    # torch keeps compiled code with the code object, at most 8 times, and all trainings of a process would share it.
    own = FunctionType(loss_of_batch.__code__.replace(), globals(), "loss_of_batch", None, loss_of_batch.__closure__)
    # With torch's own random numbers dropout drops the same values as in a plain step.
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": graphs}
    compiled: LossFunction = torch.compile(own, dynamic=False, options=options)
    if not graphs:
        return compiled

    def replayed(data: Tensor, target: Outputs) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(data, target)

    return replayed


def compare(
    function: LossFunction, parts: StepParts, settings: StepSettings, data: Tensor, target: Outputs, *, calls: int = 1
) -> Comparison:
    """Compute a batch in both ways, with the same random numbers and running statistics, and compare the results.

    Args:
        function: the compiled one.
        parts: of the step.
        settings: of the step.
        data: (B, C, *S).
        target: as the loader makes it.
        calls: of the compiled function; the last one counts.

    Raises:
        Exception: any that the compiler or the compiled code raises.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in parts.network.named_buffers()}
    for _ in range(calls):
        try:
            with torch.random.fork_rng(devices=generator_devices(settings.device)):
                compiled_loss = compute_gradients(function, parts, data, target).clone()
        finally:
            _restore(parts.network, buffers)
    compiled = _gradients(parts.network)
    loss = compute_gradients(plain_loss(parts, settings), parts, data, target)
    plain = _gradients(parts.network)
    if not all(map(math.isfinite, (loss.item(), *_norms(plain).values()))):
        return Comparison(loss=loss, is_finite=False, problem="")
    dtype = compute_dtype(settings.device, settings.precision)
    problem = _difference_of_losses(loss.item(), compiled_loss.item(), LOSS_TOLERANCES[dtype])
    problem = problem or _difference_of_gradients(plain, compiled, GRADIENT_TOLERANCES[dtype])
    return Comparison(loss=loss, is_finite=True, problem=problem)


@torch.no_grad()
def _restore(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])


def _gradients(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the gradients: those of a CUDA graph are overwritten by its next replay."""
    named = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: gradient.detach().clone() for name, gradient in named.items() if gradient is not None}


def _norms(gradients: Gradients) -> dict[str, float]:
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients.values()])
    return dict(zip(gradients, norms.tolist(), strict=True))


def _difference_of_losses(plain: float, compiled: float, tolerance: float) -> str:
    is_close = abs(compiled - plain) <= tolerance * max(abs(plain), 1.0)  # not if it is NaN
    return "" if is_close else f"the loss is {compiled:.6g} instead of {plain:.6g}"


def _difference_of_gradients(plain: Gradients, compiled: Gradients, tolerance: float) -> str:
    if unlike := plain.keys() ^ compiled.keys():
        return f"only one of them has a gradient of {min(unlike)}"
    norms = _norms(plain)
    floor = GRADIENT_FLOOR * math.hypot(*norms.values())
    for name, error in _norms({name: compiled[name] - plain[name] for name in plain}).items():
        limit = tolerance * (norms[name] + floor)
        if not error <= limit:  # or it is NaN
            return f"the gradient of {name} differs by {error:.3g}, at most {limit:.3g} is allowed"
    return ""
