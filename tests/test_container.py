"""The Dockerfile: what it copies, installs and calls exists, and it runs without root. No builder is needed."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from segwright.cli.main import Program

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def instructions() -> list[tuple[str, str]]:
    """Return the name and the text of each instruction."""
    lines = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines if line.strip())]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            name = rest.rpartition(" AS ")[2]
            found[name] = []
        found[name].append((word, rest))
    return found


def of(stage: str, word: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == word]


def reaches_builder(path: str) -> bool:
    """Return whether `.dockerignore` lets a path through; its last rule that fits counts."""
    is_in = True
    for rule in IGNORED:
        pattern = rule.removeprefix("!")
        if fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            is_in = rule.startswith("!")
    return is_in


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    copied = [rest.split()[:-1] for rest in of("build", "COPY")]
    names = [name for each in copied for name in each]
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
        assert reaches_builder(name), name
    assert reaches_builder("src/segwright/__init__.py")
    assert reaches_builder("Liver.zip")
    assert not [name for name in (".git", "tests", "segwright-work", "raw") if reaches_builder(name)]


def test_all_that_the_build_reads_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], "hatch_build.py", "build_kernels.py"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"][0].split("/")[:1])
    assert needed < {name for rest in of("build", "COPY") for name in rest.split()}


def test_the_extras_exist() -> None:
    [extras] = [rest for rest in of("build", "ARG") if rest.startswith("EXTRAS=")]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras.removeprefix("EXTRAS=").split(",")} <= {*known}


def test_the_commands_exist_with_their_options() -> None:
    [run] = of("baked", "RUN")
    words = shlex.split(run.partition(" && ")[0].replace('${SHA256:+--sha256 "$SHA256"}', "--sha256 H"))
    assert words[:3] == ["segwright", "--work", "/home/segwright/work"]
    assert words[3] == "install"
    options = {
        name for parameter in Program(name="segwright").get_command(None, "install").params for name in parameter.opts
    }
    assert {word for word in words[4:] if word.startswith("--")} <= options
    assert of("baked", "CMD") == ['["info", "model"]']
    assert "info" in Program.functions


def test_it_runs_without_root_and_with_fixed_bases() -> None:
    assert of("runtime", "USER") == ["segwright"]
    assert not of("baked", "USER")
    assert not of("runtime", "COPY")[1:], "no weights in the image without them"
    for stage in stages().values():
        base = stage[0][1].split()[0]
        assert base in stages() or re.fullmatch(r"python:\d\.\d+-slim-\w+", base)
    assert "shm" not in TEXT
    for run in (rest for word, rest in instructions() if word == "RUN"):
        assert "sudo" not in run
        assert ("apt-get install" in run) == ("rm -rf /var/lib/apt/lists/*" in run)
        assert ("pip install" in run) == ("--no-cache-dir" in run)
