"""The house rules of docs/architecture.md, section 3, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "segwright"
MODULES = sorted(SOURCE.rglob("*.py"))

LEVELS = (
    {"core"},
    {"data", "workspace"},
    {"networks", "preprocessing", "augmentation"},
    {"planning", "inference", "interop"},
    {"evaluation"},
    {"training"},
    {"report", "compat", "deploy"},
    {"api"},
    {"cli"},
)
MAX_LINES = 600
LONGER = {"training/trainer.py": 700}
"""A class is not cut into mixins to fit the limit."""

MAX_ENTRIES = 16
MORE_ENTRIES = {"data": 20, "api": 20, ".": 17}


def part_of(module: Path) -> str:
    """Return the top-level folder or module that a file belongs to."""
    relative = module.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def level_of(part: str) -> int:
    return next(level for level, parts in enumerate(LEVELS) if part in parts)


def imported_parts(tree: ast.AST) -> Iterator[str]:
    """Yield the parts of the package that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("segwright."))


def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def called_names(tree: ast.AST) -> set[str]:
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


@pytest.fixture(params=MODULES, ids=lambda module: str(module.relative_to(SOURCE)))
def module(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_imports_go_down(module: Path) -> None:
    part = part_of(module)
    if part == "__init__" or module.name == "__main__.py":  # a program, which starts the command line
        return
    for imported in imported_parts(parsed(module)):
        allowed = imported == part or level_of(imported) < level_of(part)
        assert allowed, f"{part} imports {imported}"


def test_no_module_imports_a_program() -> None:
    programs = {module_name(module) for module in MODULES if module.name == "__main__.py"}
    assert [module for module in MODULES if imported_modules(module, programs)] == []


def test_modules_stay_short(module: Path) -> None:
    limit = LONGER.get(module.relative_to(SOURCE).as_posix(), MAX_LINES)
    assert len(module.read_text(encoding="utf-8").splitlines()) <= limit


def entries_of(folder: Path) -> list[str]:
    """Return the modules and sub-folders of a folder."""
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    return [*modules, *(path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__")]


def test_test_modules_have_names_of_their_own() -> None:
    modules = sorted(Path(__file__).parent.rglob("test_*.py"))
    twins = {module.name for module in modules if sum(other.name == module.name for other in modules) > 1}
    assert not twins, "pytest imports test modules by name alone"


@pytest.mark.parametrize("folder", sorted({path.parent.relative_to(SOURCE).as_posix() for path in MODULES}))
def test_folders_have_few_entries(folder: str) -> None:
    assert len(entries_of(SOURCE / folder)) <= MORE_ENTRIES.get(folder, MAX_ENTRIES)


def module_name(module: Path) -> str:
    parts = module.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("segwright", *parts)).removesuffix(".__init__")


def imported_modules(module: Path, names: Iterable[str]) -> set[str]:
    """Return which of the modules `names` a module imports, in functions and under TYPE_CHECKING too."""
    known, found = {*names}, set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if inner <= known else {*inner, str(node.module)}
    return known & found


def circles(imports: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of modules that import each other, directly or through others."""
    reached = {name: set(found) for name, found in imports.items()}
    for middle in imports:
        for name, others in reached.items():
            if middle in others:
                reached[name] = others | reached[middle]
    in_circle = [name for name in imports if name in reached[name]]
    return {frozenset(other for other in reached[name] if name in reached[other]) for name in in_circle}


def test_no_circle_of_modules() -> None:
    modules = {module_name(module): module for module in MODULES if module != SOURCE / "__init__.py"}
    found = circles({name: imported_modules(module, modules) - {name} for name, module in modules.items()})
    assert sorted(map(sorted, found)) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {frozenset({"b", "c"})}


def test_only_the_command_line_prints_and_reads_the_environment(module: Path) -> None:
    if part_of(module) == "cli":
        return
    tree = parsed(module)
    assert "print" not in called_names(tree)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"environ", "getenv", "putenv", "expandvars"}


def test_no_global_statement(module: Path) -> None:
    assert not any(isinstance(node, ast.Global) for node in ast.walk(parsed(module)))


def test_no_pickle(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert "import pickle" not in text
    assert "torch.load" not in text
    assert "allow_pickle=True" not in text


def test_the_accelerator_is_named_in_one_place(module: Path) -> None:
    if module.relative_to(SOURCE).as_posix() == "core/device.py":
        return
    strings = [node.value for node in ast.walk(parsed(module)) if isinstance(node, ast.Constant)]
    assert "cuda" not in strings


def test_no_process_is_started(module: Path) -> None:
    if module.relative_to(SOURCE).as_posix() == "cli/launch.py":
        return
    parts = {name for node in ast.walk(parsed(module)) for name in _modules_of(node)}
    assert not parts & {"multiprocessing", "subprocess"}


def _modules_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").split(".")[0]]
    return []


def test_core_and_data_import_without_torch() -> None:
    names = [
        ".".join(["segwright", *module.relative_to(SOURCE).with_suffix("").parts])
        for module in MODULES
        if part_of(module) in {"core", "data", "workspace"} and module.name not in {"device.py", "__init__.py"}
    ]
    program = f"import {', '.join(names)}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_prediction_imports_neither_training_nor_report_nor_store() -> None:
    names = ("blosc2", "jinja2", "matplotlib", "segwright.planning", "segwright.report", "segwright.training")
    names += ("scipy.ndimage", "scipy.special")  # a third of a second; scipy loads its parts at their first use
    program = (
        "import sys, segwright, segwright.inference.ensemble, segwright.inference.folder.predict_folder\n"
        "import segwright.interop.nnunet\n"
        f"segwright.predict, segwright.load_model\nsys.exit(' '.join(set(sys.modules) & set({names!r})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
