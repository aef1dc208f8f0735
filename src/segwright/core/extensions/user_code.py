"""Report errors in the user's own code, with its file and line first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from segwright.core.errors import ConfigError, SegwrightError
from segwright.core.extensions.code_folder import is_from_folder
from segwright.core.extensions.given import GivenObject
from segwright.core.resources import resource_error


class UserCodeError(ConfigError):
    """The user's code failed, or returned something invalid."""


def package_of(reference: str) -> str:
    """Return the top-level package of a reference, or that in which a `GivenObject` is defined.

    >>> package_of("mypkg.nets:build")
    'mypkg'
    """
    if isinstance(reference, GivenObject):
        value = reference.value
        module = getattr(value, "__module__", None) or type(value).__module__
        return str(module).partition(".")[0]
    return reference.partition(":")[0].partition(".")[0]


def source_location(component: Any) -> str:
    """Return `file:line` of a function, method or class, or its name where neither is known."""
    owner = getattr(component, "__self__", None)
    found = owner if isinstance(owner, type) else getattr(component, "__func__", component)
    if isinstance(found, type):
        found = next((value for value in vars(found).values() if hasattr(value, "__code__")), found)
    code = getattr(found, "__code__", None)
    if code is None:
        return f"{getattr(found, '__module__', '')}:{getattr(found, '__qualname__', type(found).__name__)}"
    return f"{code.co_filename}:{code.co_firstlineno}"


def error_location(error: BaseException, packages: Collection[str]) -> str | None:
    """Return `file:line` of the innermost line of user code in the traceback of an error, None if there is none.

    Args:
        error: as it was caught.
        packages: top-level packages of the user's references; modules beside them count too.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    found, trace = None, error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals
        if str(module.get("__name__", "")).partition(".")[0] in packages or is_from_folder(module):
            found = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def describe_error(error: BaseException) -> str:
    """Return the type and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def require_arguments(
    component: Callable[..., Any],
    what: str,
    names: Collection[str],
    num_positional: int,
    kwargs: Mapping[str, Any],
    *,
    contract: str,
) -> None:
    """Check that a component can be called as it will be, with the keyword arguments that the settings give it.

    Args:
        component: what will be called.
        what: its kind and name, for the message.
        names: keyword arguments that every such component gets.
        num_positional: number of positional arguments that every such component gets.
        kwargs: those of the settings.
        contract: how it is called, for the message.

    Raises:
        UserCodeError: it does not take them.
    """
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*[None] * num_positional, **dict.fromkeys(names), **kwargs)
    except TypeError as error:
        given = f" with {dict(kwargs)}" if kwargs else ""
        raise UserCodeError(
            f"{source_location(component)}: {what} takes {signature}, but is called as {contract}{given}: {error}"
        ) from error


@contextmanager
def user_code_errors(packages: Collection[str], what: str) -> Iterator[None]:
    """Turn an error raised in or through code of these packages into a `UserCodeError`; leave others as they are.

    Args:
        packages: top-level packages of the user's references.
        what: the code, for the message.

    Raises:
        UserCodeError: it begins with file and line.
    """
    try:
        yield
    except SegwrightError:
        raise
    except Exception as error:
        place = None if resource_error(error) else error_location(error, packages)
        if place is None:
            raise
        raise UserCodeError(f"{place}: {what} failed with {describe_error(error)}") from error


@contextmanager
def user_call(
    component: Callable[..., Any], what: str, *, packages: Collection[str] = (), contract: str = ""
) -> Iterator[None]:
    """Turn any error of a call of user code into a `UserCodeError`.

    Args:
        component: what is called.
        what: its kind and reference, for the message.
        packages: top-level packages of the user's code beside that in which it is defined.
        contract: how it is called, for the message where the arguments do not fit.

    Raises:
        UserCodeError: it begins with file and line.
    """
    try:
        yield
    except SegwrightError:
        raise
    except (Exception, SystemExit) as error:
        if resource_error(error):
            raise
        defined = str(getattr(component, "__module__", "")).partition(".")[0]
        place = error_location(error, {defined, *packages} - {"segwright"})
        hint = "" if place or not contract else f"; {contract}"
        raise UserCodeError(
            f"{place or source_location(component)}: {what} failed with {describe_error(error)}{hint}"
        ) from error
