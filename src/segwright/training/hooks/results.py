"""Check what a subclass's hooks return, with the file and line of the hook in the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from segwright.core.extensions.user_code import UserCodeError, source_location, user_call
from segwright.training.loading.batches import BatchLoader
from segwright.training.losses.builtin import DeepSupervisionLoss, LogitsLoss

VALIDATION_KEYS: Final = ("loss", "tp_hard", "fp_hard", "fn_hard")
"""Keys of the result of an online validation step."""

_LOADER_ATTRIBUTES: Final = ("batch", "batch_bytes", "device")
"""What the loop uses of a batch loader."""

_OPTIMIZER: Final = "torch.optim.Optimizer"

_LOSS_CONTRACT: Final = (
    "a loss is called as fn(output, target) with what the network returned and a target (B, 1, *S) of label values, or "
    "a list of them, one for each resolution, if the network returns several"
)

Step = TypeVar("Step", bound=Mapping[str, Any])


class Scheduler(Protocol):
    """What torch's schedulers offer; `ReduceLROnPlateau.step` takes the validation loss."""

    def step(self) -> None:
        """Set the learning rates for the next epoch, or the next step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from: numbers, text, lists and dicts of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""


def required_optimizers(hook: Callable[..., Any]) -> tuple[Optimizer, Scheduler | None]:
    """Call `configure_optimizers`, and return optimizer and scheduler; None where it returned the optimizer alone.

    Raises:
        UserCodeError: it returned anything else.
    """
    value = hook()
    if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], Optimizer)):
        expected = f"a {_OPTIMIZER}, or (optimizer, scheduler)"
        return required_optimizer(value, hook, "configure_optimizers", expected=expected), None
    optimizer, scheduler = value
    if scheduler is None:
        return optimizer, None
    problem = _scheduler_problem(optimizer, scheduler)
    if not problem:
        return optimizer, scheduler
    raise UserCodeError(
        f"{source_location(hook)}: configure_optimizers returned {problem}; return (optimizer, scheduler) with a "
        "scheduler of that optimizer, such as those of torch.optim.lr_scheduler, or the optimizer alone"
    )


def required_optimizer(
    value: object,
    maker: object,
    what: str,
    *,
    expected: str = f"a {_OPTIMIZER} alone (a scheduler comes from configure_optimizers of a trainer)",
) -> Optimizer:
    """Return an optimiser that user code made, if it is one; `expected` is what it had to return, for the message.

    Raises:
        UserCodeError: it is not an optimiser.
    """
    if isinstance(value, Optimizer):
        return value
    kinds = [type(part).__name__ for part in value] if isinstance(value, tuple | list) else []
    names = f" ({', '.join(kinds)})" if kinds else ""
    raise UserCodeError(
        f"{source_location(maker)}: {what} returned {type(value).__name__}{names}; it must return {expected}"
    )


def required_loss(hook: Callable[..., Any]) -> Callable[..., Tensor]:
    """Call `build_loss` and return the loss that it returned, if it can be called.

    Raises:
        UserCodeError: it cannot.
    """
    value: object = hook()
    if callable(value) and not isinstance(value, type):
        return value
    shown = f"the class {value.__name__}, not made" if isinstance(value, type) else f"a {type(value).__name__}"
    raise UserCodeError(
        f"{source_location(hook)}: build_loss returned {shown}; it must return what is called as fn(output, target) "
        "and returns a scalar tensor"
    )


def loss_of(loss: Callable[[Any, Any], Tensor], output: Any, target: Any) -> Tensor:
    """Return the loss of a batch.

    Args:
        loss: what `build_loss` returned.
        output: of the network.
        target: as the loader makes it.

    Raises:
        UserCodeError: a loss of the user's own failed, or is not a scalar tensor.
    """
    if isinstance(loss, DeepSupervisionLoss | LogitsLoss):
        return loss(output, target)
    with user_call(loss, "the loss of build_loss", contract=_LOSS_CONTRACT):
        value: object = loss(output, target)
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise UserCodeError(
        f"{source_location(loss)}: the loss of build_loss returned {shown}; it must return a scalar tensor"
    )


def required_step(result: Step, hook: Callable[..., Any], keys: Sequence[str]) -> Step:
    """Return the result of a step's hook, if it has a tensor under each of these keys.

    Raises:
        UserCodeError: it does not.
    """
    value: object = result
    missing = [key for key in keys if not (isinstance(value, Mapping) and isinstance(value.get(key), Tensor))]
    if not missing:
        return result
    shown = type(value).__name__
    if isinstance(value, Mapping):
        kind = type(value[missing[0]]).__name__ if missing[0] in value else "nothing"
        shown = f"{kind} as '{missing[0]}'"
    expected = ", ".join(f"'{key}'" for key in keys)
    raise UserCodeError(
        f"{source_location(hook)}: {hook.__name__} returned {shown}; it must return a dict with tensors "
        f"{expected}, which stay on the device"
    )


def required_loaders(hook: Callable[..., Any]) -> tuple[BatchLoader, BatchLoader]:
    """Call a hook and return the two loaders that it returned, if they are two batch loaders.

    Raises:
        UserCodeError: they are not.
    """
    value = hook()
    if isinstance(value, tuple | list) and len(value) == 2:
        wrong = [loader for loader in value if any(not hasattr(loader, name) for name in _LOADER_ATTRIBUTES)]
        if not wrong:
            return value[0], value[1]
        missing = ", ".join(name for name in _LOADER_ATTRIBUTES if not hasattr(wrong[0], name))
        shown = f"a {type(wrong[0]).__name__} without {missing}"
    else:
        shown = f"a {type(value).__name__}"
    raise UserCodeError(
        f"{source_location(hook)}: {hook.__name__} returned {shown}; it must return two loaders, of training and "
        "validation, such as training.loading.batches.BatchLoader"
    )


def _scheduler_problem(optimizer: Optimizer, scheduler: object) -> str:
    """Return what is wrong with a scheduler; empty if nothing is."""
    if isinstance(scheduler, type):
        return f"the class {scheduler.__name__} as scheduler, not made"
    name = type(scheduler).__name__
    missing = [method for method in ("step", "state_dict", "load_state_dict") if not hasattr(scheduler, method)]
    if missing:
        return f"a {name} as scheduler, which has no {', '.join(missing)}"
    is_other = getattr(scheduler, "optimizer", optimizer) is not optimizer
    return f"a {name} that was made for another optimizer" if is_other else ""
