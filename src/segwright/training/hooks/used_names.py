"""Find out which names the code of classes, and of the modules that define them, reads and sets."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, partialmethod, singledispatchmethod
from types import CodeType, FunctionType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedNames:
    """Names of attributes in code.

    Attributes:
        reads: names that a function reads, or has as text (for `getattr`), each with the function's name.
        stored: names that functions set on objects.
    """

    reads: frozenset[tuple[str, str]]
    stored: frozenset[str]

    @classmethod
    def of(cls, classes: Sequence[type]) -> UsedNames:
        """Collect the names in the methods of classes and in all functions of their modules."""
        reads, stored = set(), set()
        for code in {*_codes_of_classes(classes)}:
            for instruction in dis.get_instructions(code):
                if instruction.opname.startswith("STORE_ATTR"):
                    stored.add(str(instruction.argval))
                elif instruction.opname.startswith("LOAD_"):
                    reads |= {(text, code.co_name) for text in _texts(instruction.argval)}
        return cls(reads=frozenset(reads), stored=frozenset(stored))

    def is_read(self, name: str) -> bool:
        """Return whether any function but that of the same name reads it: what no code reads has no effect."""
        return any(found == name and reader != name for found, reader in self.reads)


def _codes_of_classes(classes: Sequence[type]) -> Iterator[CodeType]:
    values: list[Any] = [value for cls in classes for value in vars(cls).values()]
    for name in {cls.__module__ for cls in classes} & sys.modules.keys():
        members = [each for each in vars(sys.modules[name]).values() if getattr(each, "__module__", None) == name]
        values += [*members, *(value for each in members if isinstance(each, type) for value in vars(each).values())]
    for function in _functions(values):
        yield from _nested(function.__code__)


def _functions(values: Sequence[Any]) -> list[FunctionType]:
    """Return the functions among values, those in properties and other descriptors, and those behind decorators."""
    found: dict[int, FunctionType] = {}
    left = [*values]
    while left:
        value = left.pop()
        if isinstance(value, property):
            left += [value.fget, value.fset]
        elif isinstance(value, staticmethod | classmethod):
            left.append(value.__func__)
        elif isinstance(value, cached_property | partial | partialmethod | singledispatchmethod):
            left.append(value.func)
        elif isinstance(value, FunctionType) and id(value) not in found:
            found[id(value)] = value
            left += [content for cell in value.__closure__ or () if (content := _content(cell)) is not None]
    return [*found.values()]


def _texts(value: Any) -> Iterator[str]:
    """Yield what is text in the value of an instruction: itself, or parts of a tuple, as in a loop over names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | frozenset):
        for part in value:
            yield from _texts(part)


def _content(cell: Any) -> Any:
    """Return what a closure holds, None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
