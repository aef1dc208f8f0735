"""Refuse hooks of a trainer file that nothing would call: misspelt, outside of the class, or assigned to the object."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from segwright.core.extensions.user_code import UserCodeError, source_location
from segwright.training.hooks.declarations import nearest, own_classes

ASSIGNABLE: Final = (
    "set_deep_supervision_enabled",
    "print_to_log_file",
    "print_plans",
    "plot_network_architecture",
    "_save_debug_information",
    "_do_i_compile",
)
"""Hooks that are called on the object, so that a function assigned to it is found."""


@cache
def hooks_of(base: type) -> frozenset[str]:
    """Return the names of the methods that files override."""
    return frozenset(name for name, value in vars(base).items() if _is_function(value) and not name.startswith("__"))


def require_hooks_reached(tree: ast.Module, cls: type, base: type, path: Path, beside: Collection[Path]) -> None:
    """Check that what looks like a hook is one.

    Args:
        tree: of the trainer file.
        cls: its class.
        base: whose hooks are called.
        path: of the file.
        beside: its other files.

    Raises:
        UserCodeError: a function outside of the class has the name of a hook, or a method that nothing calls nearly so.
    """
    hooks = hooks_of(base)
    used = {name for each in (tree, *_parsed(beside)) for name in _names_used(each)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in hooks - used and _takes_self(node):
            raise UserCodeError(
                f"{path}:{node.lineno}: {node.name} is outside of the class {cls.__name__}, where nothing calls it; "
                "indent it into the class"
            )
    for name, method in _own_methods(cls, base).items():
        meant = None if name in used or name in hooks else nearest(name, hooks)
        if meant is not None and getattr(cls, meant) is getattr(base, meant):
            raise UserCodeError(
                f"{source_location(method)}: nothing calls {name} of {cls.__name__}; nnU-Net's hook is called {meant}"
            )


def require_assignable(user: object, name: str, base: type) -> None:
    """Check that a hook may be assigned to the object of a trainer file.

    Raises:
        UserCodeError: it is looked up on the class.
    """
    if name in hooks_of(base) and name not in ASSIGNABLE:
        raise UserCodeError(
            f"{type(user).__name__} assigns {name} to the object, where it is not looked for; define it as a method of "
            "the class"
        )


def _own_methods(cls: type, base: type) -> Mapping[str, Any]:
    """Return the methods of a class and its bases that are neither the base trainer nor one of ours."""
    own = reversed(own_classes(cls, base))
    return {name: value for each in own for name, value in vars(each).items() if _is_function(value)}


def _is_function(value: object) -> bool:
    return hasattr(value, "__code__") or isinstance(value, staticmethod | classmethod)


def _takes_self(node: ast.FunctionDef) -> bool:
    return bool(node.args.args) and node.args.args[0].arg == "self"


def _parsed(files: Collection[Path]) -> list[ast.Module]:
    return [ast.parse(file.read_bytes(), str(file)) for file in files if file.suffix == ".py"]


def _names_used(tree: ast.Module) -> Iterator[str]:
    """Yield the names that code reads, calls or has in strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
