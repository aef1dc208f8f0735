"""Load a file that subclasses nnU-Net's trainer, and find the class in it."""

from __future__ import annotations

import ast
import importlib
import keyword
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from segwright.compat.nnunet.module_table import MODULES
from segwright.compat.nnunet.modules import HIDDEN, NnunetFolders, StandIns, absent_package
from segwright.compat.nnunet.unreached import require_hooks_reached
from segwright.core.errors import ConfigError, SegwrightError, did_you_mean
from segwright.core.extensions.code_folder import FolderLoader
from segwright.core.extensions.user_code import UserCodeError, describe_error, error_location
from segwright.core.resources import resource_error

BASE: Final = "segwright.compat.nnunet.trainer:nnUNetTrainer"
_MISSING_NAME: Final = re.compile(r"cannot import name '(\w+)'")
_PREFIX: Final = "nnunet_trainer_"
"""Before the name of a file that is called like an installed module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTrainer:
    """A trainer class of the user, and what its code needs to run.

    Attributes:
        cls: the class, a subclass of `compat.nnunet.trainer.nnUNetTrainer`.
        file: from which it was loaded.
        sha256: of that file.
        modules: to be entered around every call into the class, since methods import too.
        beside: files of the user that it imported from its folder or fork, by module name.
    """

    cls: type[Any]
    file: Path
    sha256: str
    modules: StandIns
    beside: dict[str, Path]

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return self.cls.__name__


def split_reference(reference: str) -> tuple[Path, str | None]:
    """Return the file and the class of `FILE.py[:Class]`.

    >>> split_reference("code/trainers.py:nnUNetTrainerFancy")[1]
    'nnUNetTrainerFancy'
    """
    file, colon, name = reference.rpartition(":")
    if colon and name.isidentifier() and file.endswith(".py"):
        return Path(file), name
    return Path(reference), None


def load_trainer_file(
    path: Path, class_name: str | None = None, *, folders: NnunetFolders | None = None
) -> LoadedTrainer:
    """Run a trainer file with stand-ins for nnU-Net's modules and return its class.

    Args:
        path: the file.
        class_name: of the class; None: the one with the file's name, else the only one that no other derives from.
        folders: values of `nnunetv2.paths`.

    Raises:
        ConfigError: the file is missing, imports what does not exist here, or has no such class.
        UserCodeError: the file raised an error, or what looks like a hook is none.
    """
    source = _read(path)
    tree = _parse(source, path)
    root, name = _root_and_name(path.absolute(), tree)
    modules = StandIns(root, folders)
    with modules:
        module = _run(path.absolute(), name, root, modules)
        cls = _choose(module, class_name, path)
    _require_packages(_definitions_used(tree, cls.__name__), modules.absent, path)
    beside = {name: Path(str(own.__file__)) for name, own in modules.own_modules.items() if _has_file(own, module)}
    require_hooks_reached(tree, cls, _base(), path, beside.values())
    return LoadedTrainer(cls=cls, file=path, sha256=sha256(source).hexdigest(), modules=modules, beside=beside)


def explain_import_error(error: ImportError, where: str, root: Path | None = None) -> ConfigError:
    """Return the error for an import of a trainer file that failed.

    Args:
        error: of the import.
        where: file and line.
        root: folder in which modules of the user were searched.
    """
    module = str(error.name or "")
    package = module.partition(".")[0]
    missing = _MISSING_NAME.match(str(error))
    if package in HIDDEN:
        what = f"{module} has no '{missing[1]}'" if missing else f"there is no module {module}"
        return ConfigError(
            f"{where}: {what} here; if it belongs to a fork of nnU-Net, leave the trainer file in the fork's folder "
            "nnunetv2/training/nnUNetTrainer, so that the fork's other files are found"
        )
    if root is not None and package and (root / package).is_dir():
        return ConfigError(f"{where}: there is no module {module} below {root}; put it there, or remove the import")
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(f"{where}: the trainer file needs {package}, which is not installed; install it")
    remedy = f"install a version of {package} that fits" if package else "leave the file in its package"
    return ConfigError(f"{where}: {describe_error(error)}; {remedy}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the trainer file cannot be read ({error.strerror}); give FILE.py or FILE.py:Class"
        ) from error


def _parse(source: bytes, path: Path) -> ast.Module:
    try:
        return ast.parse(source, str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UserCodeError(f"{path}:{line or 1}: the trainer file is not Python: {describe_error(error)}") from error


def _root_and_name(path: Path, tree: ast.Module) -> tuple[Path, str]:
    """Return where modules of the user are searched, and the file's module name.

    A file in a fork of nnU-Net, or in a package that it imports from, keeps its full name.
    """
    folders = [*path.parents]
    names = [folder.name for folder in folders]
    depths = [1 + names.index(name) for name in _own_packages(tree) if name in names]
    depth = max([*depths, _relative_levels(tree)])
    name = ".".join([*(folder.name for folder in reversed(folders[:depth])), path.stem])
    if depth and name.count(".") == depth:  # no folder has a dot in its name
        return folders[depth], name
    stem = path.stem if path.stem.isidentifier() and not keyword.iskeyword(path.stem) else "file"
    taken = stem in sys.modules or stem in sys.stdlib_module_names
    return path.parent, f"{_PREFIX}{stem}" if taken or stem == "file" else stem


def _own_packages(tree: ast.Module) -> set[str]:
    """Return the packages that a file imports from and that are not installed, `nnunetv2` among them."""
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names = {str(name).partition(".")[0] for name in imported}
    return {name for name in names if name == "nnunetv2" or (name not in sys.modules and find_spec(name) is None)}


def _relative_levels(tree: ast.Module) -> int:
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def _run(path: Path, name: str, root: Path, modules: StandIns) -> ModuleType:
    """Return the module of the file, in which imports also search `root`."""
    loader = FolderLoader(root, name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    modules.add(module)
    try:
        loader.exec_module(module)
    except SegwrightError:
        raise
    except (Exception, SystemExit) as error:
        if resource_error(error):
            raise
        where = error_location(error, ()) or str(path)
        if isinstance(error, ImportError):
            raise explain_import_error(error, where, root) from error
        raise UserCodeError(f"{where}: the trainer file failed with {describe_error(error)}") from error
    return module


def _choose(module: ModuleType, class_name: str | None, path: Path) -> type[Any]:
    """Return the trainer class of a module.

    Raises:
        ConfigError: there is none, or several and none has the file's name.
    """
    base = _base()
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if class_name is not None:
        if class_name not in found:
            raise ConfigError(f"{path}: has no trainer class '{class_name}'{did_you_mean(class_name, found)}")
        return found[class_name]
    own = {name: value for name, value in found.items() if value.__module__ == module.__name__}
    if path.stem in own:
        return own[path.stem]
    leaves = {name: value for name, value in own.items() if not any(_derives(other, value) for other in own.values())}
    if not leaves:
        raise ConfigError(f"{path}: defines no subclass of nnUNetTrainer")
    if len(leaves) > 1:
        raise ConfigError(f"{path}: defines several trainers, {', '.join(sorted(own))}; name one as {path.name}:CLASS")
    return next(iter(leaves.values()))


def _base() -> type[Any]:
    module, _, name = BASE.partition(":")
    base: type[Any] = getattr(importlib.import_module(module), name)
    return base


def _derives(other: type[Any], value: type[Any]) -> bool:
    return other is not value and issubclass(other, value)


def _has_file(own: ModuleType, trainer: ModuleType) -> bool:
    return own is not trainer and getattr(own, "__file__", None) is not None


def _require_packages(tree: ast.Module, absent: tuple[str, ...], path: Path) -> None:
    """Refuse a file that uses names of packages that are not installed; names that it only imports are ignored.

    Raises:
        ConfigError: with file, line, package and extra.
    """
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and _needs(node.module, absent)
        for alias in node.names
    }
    for node in _walk_without_annotations(tree):
        if isinstance(node, ast.Name) and node.id in imported:
            target = imported[node.id]
            error = absent_package(target.partition(".")[0], f"uses {target}")
            raise ConfigError(f"{path}:{node.lineno}: {error}")


def _definitions_used(tree: ast.Module, class_name: str) -> ast.Module:
    """Return a module with its imports, the definition of a class and the definitions that it uses, directly or not.

    All of it if the class is not defined there.
    """
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    definitions = {node.name: node for node in tree.body if isinstance(node, kinds)}
    if class_name not in definitions:
        return tree
    used, waiting = {class_name}, [class_name]
    while waiting:
        names = {node.id for node in ast.walk(definitions[waiting.pop()]) if isinstance(node, ast.Name)}
        found = (names & definitions.keys()) - used
        used |= found
        waiting += found
    body = [node for node in tree.body if not isinstance(node, kinds) or node.name in used]
    return ast.Module(body=body, type_ignores=[])


def _needs(module: str, absent: tuple[str, ...]) -> bool:
    return module.partition(".")[0] in absent and module not in MODULES


def _walk_without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk_without_annotations(child)
