"""Components that are given as Python objects: a reference if a file can name them, else a text that carries them."""

from __future__ import annotations

import sys
from typing import Any, Final

PREFIX: Final = "python-object:"
"""Start of the text that stands for an object in files; no module has such a name."""


class GivenObject(str):
    """Text for files that stands for an object of this process, and carries it.

    A file keeps the text alone, so that whoever reads it must be given the object again.

    Attributes:
        value: the object.
    """

    __slots__ = ("value",)

    value: Any

    def __new__(cls, name: str, value: Any) -> GivenObject:
        """Make the text from the name of the object."""
        text = super().__new__(cls, name if name.startswith(PREFIX) else f"{PREFIX}{name}")
        text.value = value
        return text


def reference_to(value: Any) -> str:
    """Return `module:attr` of a function or class that another process can import, else a `GivenObject`.

    Text is returned as it is.

    >>> from math import gcd
    >>> reference_to(gcd), reference_to(lambda: 0)
    ('math:gcd', 'python-object:<lambda>')
    """
    if isinstance(value, str):
        return value
    name = getattr(value, "__qualname__", None)
    if name is None:
        return GivenObject(type(value).__name__, value)
    module = str(getattr(value, "__module__", None))
    found: Any = None if module == "__main__" else sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found == value else GivenObject(name, value)


def method_reference(cls: type, method: str) -> str:
    """Return the reference of a class's method, as `reference_to` for the class."""
    owner = reference_to(cls)
    text = f"{owner}.{method}"
    return GivenObject(text, getattr(cls, method)) if isinstance(owner, GivenObject) else text


def is_lost(reference: str) -> bool:
    """Return whether a text stands for an object that it does not carry, as one read from a file."""
    return reference.startswith(PREFIX) and not isinstance(reference, GivenObject)
