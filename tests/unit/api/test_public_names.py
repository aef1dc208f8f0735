"""The public names are kept in one table; what type checkers read of it agrees."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import segwright
from segwright import api


def static_imports(package: str) -> dict[str, str]:
    """Return the module of each name that a package imports for type checkers."""
    tree = ast.parse(Path(str(import_module(package).__file__)).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: str(node.module)
        for node in imports
        if str(node.module).startswith("segwright")
        for alias in node.names
    }


def test_type_checkers_see_the_names_of_api() -> None:
    table = {name: f"segwright.api.{module}" for module, names in api._MODULES.items() for name in names}
    assert static_imports("segwright.api") == table
    assert api.__all__ == sorted(table)


def test_type_checkers_see_the_names_of_the_package() -> None:
    assert sorted(static_imports("segwright")) == segwright.__all__


def test_every_public_name_is_there() -> None:
    for package in (segwright, api):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert callable(getattr(package, name)), name
