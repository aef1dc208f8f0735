"""Import a user's module, and the modules beside it, from a folder that is not on `sys.path`.

A folder on `sys.path` serves every import of the process, even an optional `import indexed_gzip` in a library: code in
a downloaded folder would run merely because it is the current one. Here a module is found only because a user named it,
and modules that it imports are searched beside it if they are not installed. To tell its `import` statements from those
of libraries, such a module gets its own `__import__` among its builtins.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import find_spec, module_from_spec, resolve_name
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

_LOADING: Final = threading.RLock()
"""Held while a module is loaded, so that another thread never sees half of it."""


class FolderLoader(SourceFileLoader):
    """Loads a source file whose imports also search `root`; compiled files are neither read nor written."""

    def __init__(self, root: Path, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self.root = root

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the source as it is now; a `.pyc` could differ."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with an `__import__` that finds the modules beside it."""
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  the names of Python's own `__import__`
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        package = str((globals or {}).get("__package__") or "")
        absolute = resolve_name("." * level + name, package) if level and package else name
        if not level or package:
            with _LOADING:
                _load(absolute, self.root)
                for attribute in fromlist or ():
                    if attribute != "*" and not hasattr(sys.modules.get(absolute), attribute):
                        _load(f"{absolute}.{attribute}", self.root)
        return builtins.__import__(name, globals, locals, fromlist or (), level)


def import_from(folder: Path, name: str) -> ModuleType:
    """Return the module `name`: one that is installed, else the one in `folder`.

    Raises:
        ModuleNotFoundError: neither exists.
    """
    with _LOADING:
        _load(name, folder)
        return importlib.import_module(name)


def is_from_folder(module: Mapping[str, Any]) -> bool:
    """Return whether a module, given by its globals, was loaded from a user's folder."""
    return isinstance(module.get("__loader__"), FolderLoader)


def _load(name: str, root: Path) -> None:
    """Load a module and its parents from `root`, as far as they are there and neither loaded nor installed."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if prefix in sys.modules:
            continue
        parent = sys.modules.get(prefix.rpartition(".")[0])
        folders = _own_folders(parent, root) if depth > 1 else [] if _is_installed(prefix) else [str(root)]
        spec = next((spec for spec in (_spec_in(folder, prefix, root) for folder in folders) if spec), None)
        if spec is None:
            return
        module = module_from_spec(spec)
        sys.modules[prefix] = module
        try:
            if spec.loader is not None and spec.origin is not None:  # a folder without __init__.py has nothing to run
                spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(prefix, None)
            raise
        if parent is not None:
            setattr(parent, parts[depth - 1], module)


def _is_installed(name: str) -> bool:
    """Return whether Python finds a top-level module; a folder without `__init__.py` does not count."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _own_folders(parent: ModuleType | None, root: Path) -> list[str]:
    """Return the folders of a package's modules; empty if the package was not found in `root`."""
    spec = getattr(parent, "__spec__", None)
    if spec is None or spec.loader_state != root:
        return []
    return list(spec.submodule_search_locations or ())


def _spec_in(folder: str, name: str, root: Path) -> ModuleSpec | None:
    def loader(fullname: str, path: str) -> FolderLoader:
        return FolderLoader(root, fullname, path)

    spec = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES), (loader, SOURCE_SUFFIXES)).find_spec(name)  # type: ignore[arg-type]
    if spec is not None:
        spec.loader_state = root
    return spec
