"""What hooks of a trainer must give: a subclass may return anything, and its author is told where it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from segwright.core.extensions.user_code import UserCodeError, source_location
from segwright.training.loading.batches import BatchLoader

VALIDATED: Final = ("loss", "tp_hard", "fp_hard", "fn_hard")
"""What a step of the online validation gives."""

_LOADER: Final = ("batch", "batch_bytes", "device")

Step = TypeVar("Step", bound=Mapping[str, Any])


def required_optimizer(found: object, maker: object, what: str) -> Optimizer:
    """Return what a user's code gave as optimiser, if it is one.

    Raises:
        UserCodeError: it is none.
    """
    if isinstance(found, Optimizer):
        return found
    kinds = [type(part).__name__ for part in found] if isinstance(found, tuple | list) else []
    names = f" ({', '.join(kinds)})" if kinds else ""
    raise UserCodeError(
        f"{source_location(maker)}: {what} gave {type(found).__name__}{names}; it must return a torch.optim.Optimizer "
        "alone, whose learning rate follows the schedule (--set schedule=...)"
    )


def required_step(found: Step, hook: Callable[..., Any], keys: Sequence[str]) -> Step:
    """Return what a step's hook gave, if it has a tensor under each of these keys.

    Raises:
        UserCodeError: it has not.
    """
    given: object = found
    wrong = [key for key in keys if not (isinstance(given, Mapping) and isinstance(given.get(key), Tensor))]
    if not wrong:
        return found
    shown = type(given).__name__
    if isinstance(given, Mapping):
        kind = type(given[wrong[0]]).__name__ if wrong[0] in given else "nothing"
        shown = f"{kind} as '{wrong[0]}'"
    expected = ", ".join(f"'{key}'" for key in keys)
    raise UserCodeError(
        f"{source_location(hook)}: {hook.__name__} gave {shown}; it must return a dict with tensors {expected}, which "
        "stay on the device"
    )


def required_loaders(found: object, hook: Callable[..., Any]) -> tuple[BatchLoader, BatchLoader]:
    """Return the two loaders that a hook gave, if they are two and give batches.

    Raises:
        UserCodeError: they are not.
    """
    if isinstance(found, tuple | list) and len(found) == 2:
        wrong = [loader for loader in found if any(not hasattr(loader, name) for name in _LOADER)]
        if not wrong:
            return found[0], found[1]
        shown = (
            f"a {type(wrong[0]).__name__} without {', '.join(name for name in _LOADER if not hasattr(wrong[0], name))}"
        )
    else:
        shown = f"a {type(found).__name__}"
    raise UserCodeError(
        f"{source_location(hook)}: {hook.__name__} gave {shown}; it must return two loaders, of training and "
        "validation, such as training.batches.BatchLoader"
    )
