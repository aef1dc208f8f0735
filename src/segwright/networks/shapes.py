"""Find the shapes of a network's outputs, without memory where possible."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

import torch
from torch import Tensor, nn

from segwright.core.errors import ModelError, SegwrightError
from segwright.core.extensions.user_code import describe_error, error_location
from segwright.core.resources import resource_error
from segwright.networks.references import packages_of

_SIZES: Final = "must match"
"""In the message of torch about feature maps that do not fit together, as after strides that do not divide a patch."""


def copy_to_meta(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device, which has shapes but no values and takes no memory."""
    tensors = (*network.parameters(), *network.buffers())
    memo = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(memo[id(parameter)], requires_grad=False)
    return deepcopy(network, dict(memo))


def output_shapes(network: nn.Module, num_input_channels: int, patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shape (C, *S) of each output for one patch, highest resolution first; one entry for a tensor.

    The network runs on the meta device, which computes shapes only, or once on zeros if it cannot.

    Raises:
        ModelError: it fails, or its output is neither a tensor (B, C, *S) nor a list of them.
    """
    shape = (2, num_input_channels, *patch_size)  # batch norm in training mode refuses a single sample
    outputs = run_once(network, shape)
    levels = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    for level in levels:
        if not isinstance(level, Tensor) or level.ndim != len(shape):
            found = f"shape {tuple(level.shape)}" if isinstance(level, Tensor) else type(level).__name__
            raise ModelError(
                f"the network returned {found} for input {shape}; expected logits with {len(shape)} axes, or a list of "
                "them; a trainer whose network returns more says in its logits_of(output) where they are"
            )
    return [tuple(level.shape[1:]) for level in levels]


def run_once(network: nn.Module, shape: Sequence[int]) -> Any:
    """Return the output of a network for an input (B, C, *S): on the meta device, or for zeros if it cannot run there.

    Raises:
        ModelError: it fails.
    """
    with torch.no_grad():
        try:
            return copy_to_meta(network)(torch.empty(tuple(shape), device="meta"))
        except Exception:  # a user's network may fail on the meta device although it works; try zeros
            return _run_on_zeros(network, tuple(shape))


def _run_on_zeros(network: nn.Module, shape: tuple[int, ...]) -> Any:
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        return network(torch.zeros(shape, device=device))
    except SegwrightError:
        raise
    except Exception as error:
        if resource_error(error):
            raise
        hint = "; check that its strides fit the patch size" if _SIZES in str(error) else ""
        place = error_location(error, packages_of(network))
        raise ModelError(
            f"{f'{place}: ' if place else ''}the network failed on an input of shape {shape}: {describe_error(error)}"
            f"{hint}"
        ) from error
    finally:
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
