"""Convert results of steps between nnU-Net's form, numpy values, and our loop's, tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from segwright.core.extensions.user_code import UserCodeError, source_location

COUNTS: Final = ("tp_hard", "fp_hard", "fn_hard")
"""Keys of a validation step's counts (foreground classes or regions)."""


def to_numpy(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a step with arrays in place of tensors; the host waits for the device."""
    return {key: value.detach().cpu().numpy() if isinstance(value, Tensor) else value for key, value in step.items()}


def loss_of(step: object, hook: Callable[..., Any]) -> Tensor:
    """Return the loss of a step as a scalar tensor.

    Raises:
        UserCodeError: there is none.
    """
    value = step.get("loss") if isinstance(step, Mapping) else None
    if isinstance(value, Tensor):
        return value.detach().float().mean()
    if isinstance(value, int | float | np.ndarray | np.generic):
        return torch.tensor(float(np.mean(value)))
    shown = type(step).__name__ if not isinstance(step, Mapping) else f"{type(value).__name__} as 'loss'"
    raise UserCodeError(f"{source_location(hook)}: {hook.__name__} returned {shown}; it must return {{'loss': number}}")


def counts_of(step: Mapping[str, Any]) -> list[Tensor] | None:
    """Return the counts of a validation step as three int64 tensors (classes,); None if it does not count them."""
    if any(key not in step for key in COUNTS):
        return None
    return [torch.as_tensor(np.atleast_1d(_array(step[key]))).round().to(torch.int64) for key in COUNTS]


def with_all_keys(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps that have the keys of the last one; restored steps of a resumed epoch have the loss alone."""
    return [step for step in steps if step.keys() == steps[-1].keys()] if steps else []


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
