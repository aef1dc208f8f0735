"""What is printed is plain: names from files neither vanish as markup, nor forge lines, nor stop the program."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segwright.cli.app import exit_code_of
from segwright.cli.main import app
from segwright.cli.tables import print_json, print_scores, print_table
from segwright.core import log
from segwright.core.errors import DatasetError, Problem, ProblemReport
from segwright.report.results import DemoResult

FORGED = "a\x1b[2K\nerror: forged \u202e"
ESCAPED = r"a\x1b[2K\nerror: forged \u202e"


@pytest.fixture
def quiet_again() -> object:
    package = logging.getLogger("segwright")
    before = package.handlers[:], package.level, package.propagate
    yield
    package.handlers[:], package.level, package.propagate = before


def test_names_that_look_like_markup_are_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["lesion [left]", "lesion [right]", "node [/]", "[bold]x[/bold]", ":smile:"]
    print_scores("model [a]", {name: {"Dice [1]": 0.5} for name in names})
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*names, "model [a]", "Dice [1]"])


def test_a_name_keeps_to_its_row_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(FORGED, ["", FORGED], [[FORGED, "1"], ["\u6d77\u99ac", "\U0001f9e0"]])
    printed = capsys.readouterr().out
    assert printed.count(ESCAPED) == 3
    assert len(printed.rstrip().splitlines()) == len(["title", "", "columns", "rule", "row", "row"])


@pytest.mark.parametrize(
    "error", [DatasetError(f"{FORGED}: x"), ProblemReport([Problem(where=FORGED, what="x")]), RuntimeError(FORGED)]
)
def test_a_name_forges_no_line_of_an_error(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    exit_code_of(fail, [])
    said = capsys.readouterr().err.splitlines()
    assert ESCAPED.split("\\n")[0] in said[0]
    assert not any(line.startswith("error: forged") for line in said)


def test_a_report_is_one_line_for_each_problem(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ProblemReport([Problem(where="a", what="x"), Problem(where="b", what="y", remedy="z")])

    assert exit_code_of(fail, []) == 1
    assert capsys.readouterr().err == "error: a: x\nerror: b: y; z\n"


@pytest.mark.usefixtures("quiet_again")
def test_a_name_forges_no_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logging.getLogger("segwright.x").warning("%s: odd", FORGED)
    assert capsys.readouterr().err == f"{ESCAPED}: odd\n"


def test_json_stays_exact(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({FORGED: "Gr\udcfcn [left]"})
    assert json.loads(capsys.readouterr().out) == {FORGED: "Gr\udcfcn [left]"}


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_name_outside_the_encoding_of_stdout_is_printed_as_escapes(variables: dict[str, str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom segwright.cli import startup\nfrom segwright.cli.tables import print_line, print_table\n"
        "startup.escape_unencodable_output()\nprint_line('\\u6d77 \\udcfc')\n"
        "print_table('\\u6d77', ['\\u6d77'], [['\\u6d77']])\n"
        "print('\\u6d77 \\udcfc', file=sys.stderr)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, rb"\u6d77 \udcfc" + b"\n")
    assert done.stdout.startswith(rb"\u6d77 \udcfc" + b"\n" + rb"\u6d77")


def test_a_demo_without_any_dice_prints_valid_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = DemoResult(mean_dice=float("nan"), per_label={}, seconds=1.0, model=tmp_path, pictures=())
    monkeypatch.setattr("segwright.api.demo", lambda *_, **__: found, raising=False)
    printed = CliRunner().invoke(app, ["demo", "--json", "-o", str(tmp_path)])
    assert printed.exit_code == 0, printed.output
    assert "NaN" not in printed.stdout
    assert json.loads(printed.stdout)["mean_dice"] is None
