"""Modules of a user's own in a folder that is not on `sys.path`, and the trust that lets them be imported."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.code_folder import import_from
from segwright.core.extensions.trust import TRUST_ALL, TRUST_NONE, CodeTrust
from segwright.core.extensions.user_code import UserCodeError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    """Write modules; `_in_` in a name means a package."""
    for name, text in files.items():
        path = folder.joinpath(*reversed(name.split("_in_"))).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_module_finds_those_beside_it_and_its_subpackages(folder: Path) -> None:
    write(
        folder,
        xa_nets="import xa_blocks\nfrom xa_pkg import deep\nfrom xa_pkg.deep import value\nimport json\n"
        "def late():\n    from xa_late import number\n    return number",
        xa_blocks="width = 3",
        deep_in_xa_pkg="from . import more\nfrom .more import base\nimport xa_blocks\nvalue = base + xa_blocks.width",
        more_in_xa_pkg="base = 4",
        xa_late="number = 5",
    )
    module = import_from(folder, "xa_nets")
    assert (module.xa_blocks.width, module.value, module.deep.more.base) == (3, 7, 4)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(module.late()))
    thread.start()
    thread.join()
    assert found == [5]
    assert not list(folder.rglob("__pycache__"))


def test_a_package_with_init_is_found(folder: Path) -> None:
    write(folder, __init___in_xb_pkg="from xb_pkg.nets import build; from .nets import *", nets_in_xb_pkg="build = 1")
    assert import_from(folder, "xb_pkg.nets").build == 1
    assert sys.modules["xb_pkg"].build == 1


def test_nothing_else_resolves_in_the_folder(folder: Path) -> None:
    write(folder, xc_nets="import xc_blocks", xc_blocks="", xc_indexed_gzip="raise SystemExit(3)")
    import_from(folder, "xc_nets")
    with pytest.raises(ModuleNotFoundError):
        exec("import xc_indexed_gzip", {"__name__": "a_library"})


def test_installed_modules_win(folder: Path) -> None:
    write(folder, xd_nets="import numpy, typer, json\nfrom json import decoder", numpy="1/0", typer="1/0", json="1/0")
    module = import_from(folder, "xd_nets")
    assert hasattr(module.typer, "Typer")
    assert import_from(folder, "typer") is module.typer


def test_a_compiled_file_is_not_believed(folder: Path) -> None:
    write(folder, xe_nets="value = 1")
    import py_compile

    source = folder / "xe_nets.py"
    compiled = Path(py_compile.compile(str(source), doraise=True))
    other = compiled.read_bytes()
    source.write_text("value = 2")
    compiled.write_bytes(other)
    assert import_from(folder, "xe_nets").value == 2


def test_a_module_that_fails_is_not_kept(folder: Path) -> None:
    write(folder, xf_nets="\nvalue = missing_name")
    code = CodeTrust(folder=folder)
    for _ in range(2):
        with pytest.raises(
            UserCodeError,
            match=r"xf_nets\.py:2: network .* cannot be imported: NameError: name 'missing_name' is not defined",
        ):
            code.load("xf_nets:build", kind="network")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:", r"xg_nets\.py:1: .* SyntaxError"),
        ("import sys\nsys.exit(0)", r"xg_nets\.py:2: .* SystemExit"),
        ("import xg_nowhere", "importing xg_nets needs xg_nowhere"),
        ("", "xg_nets has no 'build'"),
    ],
)
def test_an_error_in_the_module_names_file_and_line(folder: Path, text: str, message: str) -> None:
    write(folder, xg_nets=text)
    with pytest.raises((UserCodeError, ConfigError), match=message):
        CodeTrust(folder=folder).load("xg_nets:build", kind="network")


@pytest.mark.parametrize(
    "reference", ["../evil:build", "a..b:c", ":build", "a:", "a:b:c", "a b:c", "/elsewhere/a:b", "a:b()", "a:b\n", ""]
)
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match="is not a reference"):
        TRUST_ALL.load(reference, kind="network")


def test_without_a_folder_the_search_path_alone_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, xh_nets="build = 1")
    with pytest.raises(ConfigError, match="no module named xh_nets"):
        TRUST_ALL.load("xh_nets:build", kind="network")
    monkeypatch.syspath_prepend(str(folder))
    assert TRUST_ALL.load("xh_nets:build", kind="network") == 1


def test_only_what_was_named_or_everything_is_trusted() -> None:
    named = TRUST_NONE.with_references("mypkg.nets:build", None, "mypkg:Trainer")
    assert named.allows("mypkg.nets:build")
    assert named.allows("mypkg:Trainer.rebuild_network")
    assert not named.allows("mypkg.nets:other")
    assert not named.allows("mypkg.nets:build.__globals__")
    assert TRUST_ALL.allows("any:thing")
    assert not TRUST_NONE.allows("any:thing")
    assert CodeTrust.of("mypkg.nets:build").allows("mypkg.nets:build")
    assert CodeTrust.of(["a:b"]) == TRUST_NONE.with_references("a:b")
    assert CodeTrust.of(True) == TRUST_ALL
    assert CodeTrust.of(False) == TRUST_NONE


def test_a_refusal_names_file_reference_and_remedy() -> None:
    with pytest.raises(
        ModelError, match=r"m/a\.json: names the network 'evil:build'.*--trust-code.*--network evil:build"
    ):
        TRUST_NONE.require("evil:build", kind="network", source="m/a.json", option="--network ")
