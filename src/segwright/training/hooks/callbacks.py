"""Load and call callbacks: a user's objects or functions, called after the trainer's hook of the same name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from segwright.core.errors import ConfigError, SegwrightError, did_you_mean
from segwright.core.extensions.given import reference_to
from segwright.core.extensions.registry import import_reference
from segwright.core.extensions.user_code import (
    UserCodeError,
    describe_error,
    error_location,
    source_location,
    user_call,
)
from segwright.core.interrupt import Interrupted
from segwright.core.resources import resource_error

EVENTS: Final = (
    "on_train_start",
    "on_epoch_start",
    "on_train_epoch_start",
    "on_train_step_start",
    "on_train_step_end",
    "on_train_epoch_end",
    "on_validation_epoch_start",
    "on_validation_step_start",
    "on_validation_step_end",
    "on_validation_epoch_end",
    "on_epoch_end",
    "on_train_end",
)
"""In the order in which they occur; a callback has methods `fn(trainer)` with any of these names."""

STEP_EVENTS: Final = tuple(event for event in EVENTS if "_step_" in event)
"""Events of single steps; the trainer has no hooks of these names, but `train_step` and `validation_step`."""

PLAIN_EVENT: Final = "on_epoch_end"
"""The event at which a callback that is a plain function is called."""


class CallbackError(UserCodeError):
    """A user's callback failed."""


def load_callbacks(given: Sequence[object]) -> list[object]:
    """Return callbacks ready to be called: a class (made without arguments), an object, a function.

    Args:
        given: the callbacks, or references `module:attr` to them.

    Raises:
        ConfigError: a reference does not exist, or the callback has no method for an event.
    """
    references = [reference_to(each) for each in given]
    values = [import_reference(reference, kind="callback") for reference in references]
    callbacks = []
    for reference, value in zip(references, values, strict=True):
        with user_call(value, f"callback '{reference}'", contract="a callback's class is made without arguments"):
            callbacks.append(value() if isinstance(value, type) else value)
    for reference, callback in zip(references, callbacks, strict=True):
        require_callback(callback, name=f"callback '{reference}'")
    return callbacks


def require_callback(callback: object, *, name: str) -> None:
    """Check that a callback has a method for an event.

    Raises:
        ConfigError: it has none, or one whose name is similar to that of an event.
    """
    methods = [method for method in dir(callback) if method.startswith("on_")]
    for method in methods:
        if method not in EVENTS:
            raise ConfigError(f"{name}: there is no event {method}{did_you_mean(method, EVENTS)}")
        value = getattr(callback, method)
        if not callable(value):
            raise ConfigError(f"{name}: {method} is {value!r}, expected a method {method}(self, trainer)")
    if not methods and not callable(callback) and not _has_events(callback):
        raise ConfigError(f"{name} has none of the methods {', '.join(EVENTS)}; write one of them as fn(self, trainer)")


def call_callbacks(callbacks: Sequence[object], event: str, trainer: object, packages: Collection[str]) -> None:
    """Call, in their order, the callbacks that have a method for an event.

    Args:
        callbacks: objects or functions.
        event: one of `EVENTS`.
        trainer: the argument of each call.
        packages: top-level packages of user code, for the error message.

    Raises:
        CallbackError: a callback failed.
    """
    for callback in callbacks:
        method = _method(callback, event)
        if method is None:
            continue
        try:
            method(trainer)
        except (SegwrightError, Interrupted):
            raise
        except Exception as error:
            if resource_error(error):
                raise
            name = getattr(callback, "__name__", type(callback).__name__)
            package = str(getattr(callback, "__module__", "")).partition(".")[0]
            place = error_location(error, {package, *packages}) or source_location(method)
            raise CallbackError(f"{place}: callback {name} failed in {event}: {describe_error(error)}") from error


def _method(callback: object, event: str) -> Callable[[Any], None] | None:
    method: Callable[[Any], None] | None = getattr(callback, event, None)
    if method is None and event == PLAIN_EVENT and callable(callback) and not _has_events(callback):
        return callback
    return method


def _has_events(callback: object) -> bool:
    return any(hasattr(callback, event) for event in EVENTS)
