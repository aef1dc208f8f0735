"""Component references: a registered name or `module:attr`, by which a checkpoint finds a component again."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final, Generic, TypeVar

from segwright.core.errors import ConfigError, SegwrightError, did_you_mean
from segwright.core.extensions.given import PREFIX, GivenObject, is_lost
from segwright.core.extensions.user_code import UserCodeError, describe_error, error_location, package_of

T = TypeVar("T")

_REFERENCE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Registry(Generic[T]):
    """Names for one kind of component.

    >>> losses = Registry[str]("loss")
    >>> losses.register("dice", "the Dice loss")
    >>> losses.get("dice")
    'the Dice loss'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Add a component; a name can be used once."""
        if name in self._values:
            raise ConfigError(f"{self.kind} '{name}' is already registered; choose another name")
        self._values[name] = value

    def get(self, name: str) -> T:
        """Return the component called `name`; an unknown name raises a `ConfigError` that lists all names."""
        if name not in self._values:
            hint = did_you_mean(name, self._values)
            if hint.endswith("?"):
                nearest = get_close_matches(name, self._values, n=len(self._values), cutoff=0)
                hint += f" Choose from {', '.join(nearest)}"
            raise ConfigError(f"unknown {self.kind} '{name}'{hint}, or write your own as package.module:name")
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """Return the registered names, in order of registration."""
        return tuple(self._values)


def is_reference(name: str) -> bool:
    """Return whether a name is `module:attr` or stands for a Python object: code outside a registry.

    >>> is_reference("mypkg.nets:build"), is_reference("unet")
    (True, False)
    """
    return ":" in name


def import_reference(reference: str, *, kind: str, find: Callable[[str], Any] = importlib.import_module) -> Any:
    """Return the object behind `module:attr` or a `GivenObject`.

    The caller has checked that it is trusted (`core.extensions.trust`).

    Args:
        reference: `module:attr`.
        kind: of component, for messages.
        find: imports a module by its name.

    Raises:
        ConfigError: the reference is malformed, the module or the attribute does not exist, or it stands for a Python
            object of another process.
        UserCodeError: the module has an error.
    """
    if isinstance(reference, GivenObject):
        return reference.value
    if is_lost(reference):
        raise ConfigError(lost_object(reference, kind))
    if not _REFERENCE.fullmatch(reference):
        raise ConfigError(f"{kind} '{reference}' is not a reference; write it as 'package.module:name'")
    module_name, _, attribute = reference.partition(":")
    try:
        value: Any = find(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{kind} '{reference}': importing {module_name} needs {error.name}; install it"
            ) from error
        raise ConfigError(
            f"{kind} '{reference}': no module named {module_name}; install it or run where it can be imported"
        ) from error
    except SegwrightError:
        raise
    except (Exception, SystemExit) as error:  # a module may do anything while it is imported
        place = error_location(error, {package_of(reference)}) or module_name
        raise UserCodeError(f"{place}: {kind} '{reference}' cannot be imported: {describe_error(error)}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigError(
                f"{kind} '{reference}': {module_name} has no '{attribute}'{did_you_mean(part, dir(value))}"
            )
        value = getattr(value, part)
    return value


def lost_object(reference: str, kind: str) -> str:
    """Return the message about a text that stands for an object of another process."""
    name = reference.removeprefix(PREFIX)
    return (
        f"{kind}: files cannot hold the Python object {name}; pass it again from Python ({kind}=...), or define it at "
        "the top level of a module and train with that"
    )


def reference_of(component: Callable[..., Any]) -> str:
    """Return `module:qualname` of an importable function or class.

    Raises:
        ConfigError: a lambda or a nested function, which another process could not import.
    """
    name = f"{component.__module__}:{component.__qualname__}"
    if "<" in name:
        raise ConfigError(f"'{name}' cannot be stored in a checkpoint; move it to the top level of a module")
    return name
