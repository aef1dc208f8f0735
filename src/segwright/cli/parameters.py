"""Share the parameters of one function among several commands."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Parameter, Signature


def with_parameters_of(shared: Callable[..., object]) -> Callable[[Callable[..., None]], SharingCommand]:
    """Let a command take the parameters of `shared` too, and its result as the first argument.

    A parameter that both have is one option, with the default of the command, and is passed to both.
    """
    return lambda command: SharingCommand(shared, command)


class SharingCommand:
    """A command with the parameters of another function as well; they are put together when a parser needs them."""

    def __init__(self, shared: Callable[..., object], command: Callable[..., None]) -> None:
        self._shared = shared
        self._command = command
        self.__name__, self.__doc__ = command.__name__, command.__doc__

    def __call__(self, **values: Any) -> None:
        """Call the shared function, then the command."""
        first, *own = _parameters(self._command)
        result = self._shared(**{name: values[name] for name in _parameters(self._shared)})
        self._command(**{first: result}, **{name: values[name] for name in own})

    @property
    def __signature__(self) -> Signature:
        """The parameters, as `inspect.signature` and Typer read them."""
        from inspect import Signature

        own = _parameters(self._command)
        del own[next(iter(own))]
        return Signature([*{**_parameters(self._shared), **own}.values()])

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        """The types of the parameters."""
        return {name: each.annotation for name, each in self.__signature__.parameters.items()}


def _parameters(function: Callable[..., object]) -> dict[str, Parameter]:
    """Return the parameters of a function as keywords, by name, with their annotations as objects."""
    from inspect import Parameter, signature

    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: each.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, each in signature(function).parameters.items()
    }
