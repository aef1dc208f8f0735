"""Stand-in modules for nnU-Net and its packages, importable only inside a `with` block.

A trainer file imports `nnunetv2.*` when it is loaded and, within its methods, while it trains. The same `StandIns` is
entered around both; outside of it `sys.modules`, `sys.meta_path` and `sys.path` are as they were.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

from segwright.compat.nnunet.module_table import MODULES
from segwright.core.errors import ConfigError
from segwright.core.extensions.code_folder import FolderLoader
from segwright.core.extensions.extras import install_line

HIDDEN: Final = ("nnunetv2", "dynamic_network_architectures")
"""Packages of which only the stand-ins are seen, even where they are installed."""

TRANSFORM_PACKAGES: Final = ("batchgenerators", "batchgeneratorsv2", "acvl_utils")
"""Packages of augmentations, and what they import, that are used where they are installed."""

REPLACED: Final = ("batchgenerators.utilities.", "batchgenerators.dataloading.")
"""Modules of them that are stand-ins all the same: files and augmenters, which would start processes."""

EVALUATION: Final = "nnunetv2.evaluation.evaluate_predictions"

TRANSFORMS_EXTRA: Final = "nnunet-transforms"

_LOCK: Final = threading.RLock()
"""Held while `sys.modules` is changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetFolders:
    """The values of `nnunetv2.paths`; None where a folder is not known."""

    raw: Path | None = None
    preprocessed: Path | None = None
    results: Path | None = None
    references: Mapping[str, Path] | Path | None = None
    """The dataset's label maps, with which `compute_metrics_on_folder` compares: folder, or file of each case."""
    label_map: Mapping[int, int] = field(default_factory=dict)
    """From values in these files to labels."""


class FolderName(str):
    """A folder as nnU-Net gives it: a string, since 2.7 with `is_set`."""

    __slots__ = ()

    def is_set(self) -> bool:
        """Return True: a folder that is not set is None."""
        return True


class StandInModule(ModuleType):
    """A module whose names are loaded from here when they are first used."""

    def __init__(
        self,
        name: str,
        targets: Mapping[str, str],
        stand_ins: Mapping[str, ModuleType],
        folder: str,
        fork: ForkFiles | None,
    ) -> None:
        super().__init__(name, "A stand-in of Segwright for a module of nnU-Net or of its packages.")
        self._fork = fork
        self._targets = targets
        self._stand_ins = stand_ins
        self.__all__ = [*targets]
        self.__path__ = [folder]
        self.__file__ = str(Path(folder) / "__init__.py")

    def __getattr__(self, name: str) -> Any:
        """Return the object behind a name, or a sub-module."""
        if name in self._targets:
            value = load_target(self._targets[name])
            setattr(self, name, value)
            return value
        child = self._stand_ins.get(f"{self.__name__}.{name}")
        if child is not None:
            return child
        own = None if self._fork is None or name.startswith("__") else self._fork.load(self.__name__)
        if own is None or not hasattr(own, name):
            raise AttributeError(f"{self.__name__} has no '{name}' in Segwright")
        return getattr(own, name)


class ForkFiles:
    """The files of a fork that a stand-in hides; they serve names that nnU-Net does not have.

    Args:
        root: folder that holds the fork's `nnunetv2`.

    Attributes:
        modules: those that were loaded, by name; they are not in `sys.modules`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, ModuleType] = {}

    def load(self, name: str) -> ModuleType | None:
        """Return the fork's module of a stand-in; None if there is no such file, or it is being loaded."""
        file = self.root.joinpath(*name.split(".")).with_suffix(".py")
        if name not in self.modules and file.is_file():
            loader = FolderLoader(self.root, name, str(file))
            spec = spec_from_file_location(name, file, loader=loader)
            assert spec is not None
            self.modules[name] = module_from_spec(spec)
            try:
                loader.exec_module(self.modules[name])
            except BaseException:
                del self.modules[name]
                raise
        return self.modules.get(name)


class AbsentModule(ModuleType):
    """A module of a package that is not installed; its names can be imported, and raise an error when they are used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__all__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Return a class that cannot be instantiated."""
        if name.startswith("__"):
            raise AttributeError(name)
        package, path = self.__name__.partition(".")[0], f"{self.__name__}.{name}"

        def refuse(cls: type, *_args: object, **_kwargs: object) -> Any:
            raise absent_package(package, f"uses {path}")

        value = type(name, (), {"__new__": refuse, "__module__": self.__name__})
        setattr(self, name, value)
        return value


def absent_package(package: str, use: str) -> ConfigError:
    """Return the error about a package that a trainer file needs and that is not installed.

    Args:
        package: its name.
        use: what the file does, e.g. "uses batchgeneratorsv2.transforms.X".
    """
    return ConfigError(f"the trainer file {use}, but {package} is not installed; {install_line(TRANSFORMS_EXTRA)}")


def load_target(reference: str) -> Any:
    """Return the object behind `module:attr` of the table, or the module behind `module:`."""
    module, _, attribute = reference.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def absent_packages() -> tuple[str, ...]:
    """Return which packages of augmentations are not installed; to be called outside of a `StandIns`."""
    return tuple(name for name in TRANSFORM_PACKAGES if name not in sys.modules and find_spec(name) is None)


class StandIns:
    """The stand-in modules of one trainer file, and the modules loaded from its folder; a context manager.

    It can be entered again and nested, and by several threads at a time.

    Args:
        root: folder in which modules that are not installed are searched: that of the file, or the one that holds
            the `nnunetv2` of a fork.
        folders: values of `nnunetv2.paths`.
    """

    def __init__(self, root: Path | None = None, folders: NnunetFolders | None = None) -> None:
        self.root = root
        self.absent = absent_packages()
        self._own: dict[str, ModuleType] = {}
        self._saved: dict[str, ModuleType] = {}
        self._known: frozenset[str] = frozenset()
        self._path_outside: list[str] = []
        self._added_to_path: list[str] = []
        self._depth = 0
        self._finder = _AbsentFinder(self.absent)
        self._fork = ForkFiles(root) if root is not None and (root / "nnunetv2").is_dir() else None
        self._stand_ins = _make_modules(root, self.absent, self._fork)
        folders = folders or NnunetFolders()
        _set_folders(self._stand_ins["nnunetv2.paths"], folders)
        _bind_references(self._stand_ins[EVALUATION], folders)

    @property
    def own_modules(self) -> Mapping[str, ModuleType]:
        """The modules that were loaded from the file's folder, by name."""
        return {**self._own, **({} if self._fork is None else self._fork.modules)}

    def add(self, module: ModuleType) -> None:
        """Make a module of the user importable inside this context, which must be entered."""
        sys.modules[module.__name__] = module
        self._own[module.__name__] = module

    def __enter__(self) -> StandIns:
        """Put the modules into `sys.modules`."""
        with _LOCK:
            self._depth += 1
            if self._depth == 1:
                self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take them out again."""
        with _LOCK:
            self._depth -= 1
            if self._depth == 0:
                self._remove()

    def _install(self) -> None:
        hidden = [name for name in [*sys.modules] if self._hides(name)]
        self._saved = {name: sys.modules.pop(name) for name in hidden}
        self._known = frozenset(sys.modules)
        self._path_outside = [*sys.path]
        sys.path.extend(self._added_to_path)
        sys.modules.update(self._stand_ins)
        sys.modules.update(self._own)
        sys.meta_path.append(self._finder)

    def _remove(self) -> None:
        sys.meta_path.remove(self._finder)
        self._added_to_path = [entry for entry in sys.path if entry not in self._path_outside]
        for name, module in [*sys.modules.items()]:
            if name in self._stand_ins:
                del sys.modules[name]
            elif self._hides(name) or (name not in self._known and self._is_own(module)):
                self._own[name] = sys.modules.pop(name)
        sys.path[:] = self._path_outside
        sys.modules.update(self._saved)
        self._saved = {}

    def _hides(self, name: str) -> bool:
        return name in self._stand_ins or name in self._own or name.partition(".")[0] in (*HIDDEN, *self.absent)

    def _is_own(self, module: ModuleType) -> bool:
        """Return whether a module came from the file's folder, or from one that the file added to `sys.path`."""
        if self.root is not None and getattr(module.__spec__, "loader_state", None) == self.root:
            return True
        file = getattr(module, "__file__", None)
        return file is not None and any(Path(file).is_relative_to(entry) for entry in self._added_to_path if entry)


class _AbsentFinder(MetaPathFinder, Loader):
    """Finds every module of packages that are not installed."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


def _make_modules(root: Path | None, absent: Sequence[str], fork: ForkFiles | None) -> dict[str, ModuleType]:
    """Return the stand-in modules and their parents; packages that are installed keep their own parents."""
    modules: dict[str, ModuleType] = {}
    for name in MODULES:
        parts = name.split(".")
        if parts[0] not in (*HIDDEN, *absent) and not name.startswith(REPLACED):
            continue
        first = 1 if parts[0] in (*HIDDEN, *absent) else len(parts)
        for depth in range(first, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            if prefix not in modules:
                modules[prefix] = _make_module(prefix, modules, root, fork)
    return modules


def _make_module(name: str, modules: Mapping[str, ModuleType], root: Path | None, fork: ForkFiles | None) -> ModuleType:
    tree = Path(__file__).parent if fork is None else fork.root
    folder = str(tree.joinpath(*name.split(".")))
    module = StandInModule(name, MODULES.get(name, {}), modules, folder, fork)
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [folder]
    spec.loader_state = root  # by which `code_folder` searches the sub-modules of a fork
    module.__spec__ = spec
    return module


def _set_folders(paths: ModuleType, folders: NnunetFolders) -> None:
    for name in ("raw", "preprocessed", "results"):
        folder = getattr(folders, name)
        setattr(paths, f"nnUNet_{name}", None if folder is None else FolderName(folder))


def _bind_references(evaluation: ModuleType, folders: NnunetFolders) -> None:
    """Make `compute_metrics_on_folder` know the references, since there is no `gt_segmentations` of nnU-Net."""

    def compute_metrics_on_folder(*args: Any, **kwargs: Any) -> Any:
        function = load_target(MODULES[EVALUATION]["compute_metrics_on_folder"])
        return function(*args, **{"references": folders.references, "label_map": folders.label_map, **kwargs})

    setattr(evaluation, "compute_metrics_on_folder", compute_metrics_on_folder)  # noqa: B010  no attribute for mypy
