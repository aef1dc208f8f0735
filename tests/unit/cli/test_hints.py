"""Every option and command that a message names exists, and options of the same name say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from segwright.cli.main import Program, app

SOURCE = Path(__file__).parents[3] / "src" / "segwright"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9]")
OF_SLURM = (
    *("--job-name", "--array", "--signal", "--gres", "--cpus-per-task", "--requeue", "--kill-on-invalid-dep"),
    *("--open-mode", "--dependency", "--me", "--noheader", "--parsable", "--account"),
)
OF_OTHER_PROGRAMS = frozenset({"--editable", "--nthreads", "--resources", "--scheduler-file", *OF_SLURM})
"""Of pip, dask and SLURM."""
COMMAND = re.compile(r"\bsegwright ([a-z]+(?:-[a-z]+)*)((?: [^';,.]*)?)")
STAGES = ("plan", "preprocess", "train", "select")
OF_ITS_OWN = {
    *(("plan", "--name"), ("preprocess", "--plans"), ("train", "--plans"), ("train", "--config"), ("train", "-c")),
    *(("select", "--plans"), ("select", "--folds"), ("select", "--network"), ("select", "--output"), ("select", "-o")),
    *(("plan", "--output"), ("plan", "-o")),
}
"""Options of a stage that mean something else there, or have another default."""


@cache
def options_of(command: str) -> dict[str, str]:
    """Return the help of every option of a command, by each of its names."""
    program: Any = typer.main.get_command(app)
    parameters = program.get_command(None, command).params
    named = {name: each for each in parameters for name in (*each.opts, *each.secondary_opts) if name.startswith("--")}
    return {name: str(each.help) for name, each in named.items()}


@cache
def global_options() -> frozenset[str]:
    program: Any = typer.main.get_command(app)
    return frozenset(name for each in program.params for name in each.opts) | {"--help"}


@cache
def nnunet_options() -> frozenset[str]:
    """Return the options of nnU-Net's commands, which messages in `cli.nnunet` name."""
    modules = (import_module(f"segwright.cli.nnunet.{path.stem}") for path in (SOURCE / "cli" / "nnunet").glob("*.py"))
    commands = (command for module in modules for command in getattr(module, "COMMANDS", {}).values())
    return frozenset(name for command in commands for option in command.options for name in option.names)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module without its docstrings; fields of an f-string are X."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inner:
            yield node.lineno, node.value


OF_RUNTIME = frozenset({"--bundle", "--threads", "--provider"})
"""Options of `segwright-runtime` alone."""


def messages() -> list[tuple[str, str]]:
    modules = sorted(SOURCE.rglob("*.py"))
    found = ((path, text) for path in modules for text in texts(ast.parse(path.read_text(encoding="utf-8"))))
    return [(f"{path.relative_to(SOURCE)}:{line}", text) for path, (line, text) in found]


def wrong_hints(text: str, known_elsewhere: frozenset[str] = OF_OTHER_PROGRAMS) -> list[str]:
    """Return the commands and options in a message that do not exist, or not together."""
    every = {name for command in Program.functions for name in options_of(command)} | global_options()
    wrong = [word for word in OPTION.findall(text) if word not in every | known_elsewhere]
    for command, rest in COMMAND.findall(text):
        if command in Program.functions:
            known = {*options_of(command), *global_options()}
            wrong += [f"{command} {word}" for word in OPTION.findall(rest) if word not in known]
        elif rest.lstrip()[:2] == "--" or rest.lstrip()[:1].isupper():
            wrong.append(f"segwright {command}")
    return wrong


def known_in(place: str) -> frozenset[str]:
    """Return the options, besides those of `segwright`, that a message of a module may name."""
    if place.startswith("cli/nnunet/"):
        return frozenset(nnunet_options())
    return OF_OTHER_PROGRAMS | (OF_RUNTIME if place.startswith("deploy/runtime/") else frozenset())


def test_every_option_and_command_in_a_message_exists() -> None:
    found = {place: wrong for place, text in messages() if (wrong := wrong_hints(text, known_in(place)))}
    assert found == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("choose another folder with --work DIR", []),
        ("give it another --nmae", ["--nmae"]),
        ("'segwright plan --overwrite' replaces it", []),
        ("'segwright plan DATASET --resume'", ["plan --resume"]),
        ("'segwright planing DATASET'", ["segwright planing"]),
    ],
)
def test_wrong_hints_are_found(text: str, wrong: list[str]) -> None:
    assert wrong_hints(text) == wrong


@pytest.mark.parametrize("stage", STAGES)
def test_run_describes_the_options_of_its_stages_as_they_do(stage: str) -> None:
    of_run, of_stage = options_of("run"), options_of(stage)
    shared = {name for name in of_run.keys() & of_stage.keys() if (stage, name) not in OF_ITS_OWN}
    assert {name: of_run[name] for name in shared} == {name: of_stage[name] for name in shared}


def test_run_takes_what_its_stages_take() -> None:
    wanted = {"--iterations", "--epochs", "--batch-size", "--seed", "--deterministic"}
    assert wanted | {"--plans", "--gpu-memory", "--gpus"} <= options_of("run").keys()


@pytest.mark.parametrize("name", ["Snakefile", "kubernetes-job.yaml"])
def test_every_option_and_command_in_an_example_exists(name: str) -> None:
    text = (SOURCE.parents[1] / "examples" / name).read_text()
    assert "predict" in text
    assert wrong_hints(text, OF_OTHER_PROGRAMS | {"--cores"}) == []
