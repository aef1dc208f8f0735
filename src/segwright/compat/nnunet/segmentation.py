"""Keep only the segmentation of a network that returns more, for prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from segwright.core.errors import ModelError
from segwright.networks.shapes import run_once


def keep_segmentation(network: nn.Module, num_heads: int) -> RemovableHandle:
    """Make a network return the first tensor (B, heads, *S) of its output alone, until the handle is removed."""
    return network.register_forward_hook(partial(_keep, num_heads))


def require_segmentation(network: nn.Module, shape: Sequence[int], num_heads: int, *, where: str) -> None:
    """Check that a network returns a segmentation for an input (B, C, *S), as validation and prediction need it.

    Args:
        network: in the state in which it predicts.
        shape: of the input.
        num_heads: channels of the segmentation.
        where: the trainer class, for messages.

    Raises:
        ModelError: it fails, or returns none.
    """
    try:
        found = first_logits(run_once(network, shape), num_heads, tuple(shape[2:]))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    if found is None:
        raise ModelError(
            f"{where}: the network {type(network).__name__} returns no segmentation, which validation and prediction "
            f"need: no tensor with {num_heads} channels of the patch's size {tuple(shape[2:])}"
        )


def first_logits(output: Any, num_heads: int, size: tuple[int, ...]) -> Tensor | None:
    """Return the first tensor (B, heads, *size) in an output of lists, tuples and dicts; None if there is none."""
    if isinstance(output, Tensor):
        is_full = output.ndim == len(size) + 2 and output.shape[1] == num_heads and tuple(output.shape[2:]) == size
        return output if is_full else None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((found for part in parts if (found := first_logits(part, num_heads, size)) is not None), None)


def segmentation_of(num_heads: int, output: Any) -> Any:
    """Return the segmentation in a network's output: a tensor (B, heads, *S), or a list or tuple of such.

    An output without any is returned unchanged.
    """
    found = _find(num_heads, output)
    return output if found is None else found


def _find(num_heads: int, output: Any) -> Any:
    if _is_logits(num_heads, output):
        return output
    if not isinstance(output, list | tuple | Mapping):
        return None
    parts = [*output.values()] if isinstance(output, Mapping) else [*output]
    if parts and all(_is_logits(num_heads, part) for part in parts) and not isinstance(output, Mapping):
        return output
    return next((found for part in parts if (found := _find(num_heads, part)) is not None), None)


def _is_logits(num_heads: int, output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim in (4, 5) and output.shape[1] == num_heads


def _keep(num_heads: int, network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    found = first_logits(output, num_heads, tuple(inputs[0].shape[2:]))
    if found is None:
        raise ModelError(
            f"the network {type(network).__name__} returned no segmentation: no tensor with {num_heads} channels of "
            f"the input's size {tuple(inputs[0].shape[2:])}"
        )
    return found
