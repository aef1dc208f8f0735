"""Every field of what the public functions return is described in the docstring of its class."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType, UnionType
from typing import Any

import pytest
from pydantic import BaseModel

from segwright import api
from segwright.inference.prediction import Prediction

SCHEMA = "schema_version"
"""The version of a document, the same in all of them."""


def namespace(module: ModuleType) -> dict[str, Any]:
    """Return the names of a module, with those that it imports for type checkers only."""
    names = dict(vars(module))
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom):
                    source = importlib.import_module(str(statement.module))
                    names |= {each.name: getattr(source, each.name) for each in statement.names}
    return names


def classes_in(annotation: Any) -> Iterator[type]:
    """Yield our classes that an annotation names."""
    if isinstance(annotation, type) and not isinstance(annotation, UnionType) and not typing.get_args(annotation):
        if annotation.__module__.startswith("segwright."):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from classes_in(inner)


def hints(target: Any) -> dict[str, Any]:
    modules = {each.__module__ for each in getattr(target, "__mro__", (target,))}
    names = [namespace(sys.modules[name]) for name in sorted(modules) if name.startswith("segwright.")]
    return typing.get_type_hints(target, localns={key: value for each in names for key, value in each.items()})


def fields_of(cls: type) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [each.name for each in dataclasses.fields(cls) if not each.name.startswith("_")]
    return [name for name in cls.model_fields if name != SCHEMA] if issubclass(cls, BaseModel) else []


def results() -> list[type]:
    """Return the classes that public functions return, and those of their fields."""
    functions = [getattr(api, name) for name in api.__all__ if inspect.isfunction(getattr(api, name))]
    waiting = [Prediction, *(cls for function in functions for cls in classes_in(hints(function).get("return")))]
    found: dict[type, None] = {}
    while waiting:
        cls = waiting.pop()
        if cls in found or not fields_of(cls):
            continue
        found[cls] = None
        waiting += [inner for name, hint in hints(cls).items() if name in fields_of(cls) for inner in classes_in(hint)]
    return sorted(found, key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def described(cls: type) -> set[str]:
    """Return the fields in the docstring of a class, and those with a docstring of their own."""
    names: set[str] = set()
    for each in cls.__mro__:
        if not each.__module__.startswith("segwright."):
            continue
        names |= set(re.findall(r"^ +(\w+)(?: \([^)]*\))?: ", inspect.getdoc(each) or "", re.MULTILINE))
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                names.add(field.target.id)
    return names


@pytest.mark.parametrize("cls", results(), ids=lambda cls: cls.__qualname__)
def test_every_field_of_a_result_is_described(cls: type) -> None:
    assert set(fields_of(cls)) - described(cls) == set()
