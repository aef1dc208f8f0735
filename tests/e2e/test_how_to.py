"""Commands and files shown in docs/how-to work as shown, on a tiny phantom."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from journeys import Journey, call

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
SHORT = ("--epochs", "1", "--iterations", "2", "--batch-size", "2", "--device", "cpu")
_BLOCK = re.compile(r"^```(python)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and text of each code block of a page."""
    return _BLOCK.findall((HOW_TO / page).read_text())


def commands(page: str) -> list[str]:
    """Return the training commands of a page."""
    lines = [line for language, text in blocks(page) if not language for line in text.splitlines()]
    return [line for line in lines if line.startswith("segwright train DATASET ")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with every file shown on the pages."""
    for page in ("change-the-network.md", "extend.md"):
        for language, text in blocks(page):
            name = text.splitlines()[0].removeprefix("# ")
            if language and name.endswith(".py"):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


PAGES = ("change-the-network.md", "extend.md", "fine-tuning.md")


@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
def test_what_is_shown_works(journey: Journey, project: Path, command: str) -> None:
    shutil.copytree(journey.preprocessed, project / "work" / "preprocessed" / journey.dataset.name)
    words = shlex.split(command.replace("DATASET", str(journey.dataset)).replace("MODEL", str(journey.model)))[1:]
    trained = call("--work", project / "work", *words, *SHORT)
    assert trained.exit_code == 0, trained.stderr
    [model] = (project / "work" / "results" / journey.dataset.name).iterdir()
    images = journey.dataset / "imagesTs"
    trust = ("--trust-code",) if "mypkg." in command else ()  # the pages say so
    predicted = call("predict", "--model", model, "-i", images, "-o", project / "out", "--device", "cpu", *trust)
    assert predicted.exit_code == 0, predicted.stderr
    assert len([*(project / "out").glob("*.nii.gz")]) == len([*images.glob("*.nii.gz")])


def test_the_page_shows_three_ways() -> None:
    shown = " ".join(commands("change-the-network.md"))
    assert all(way in shown for way in ("--network residual-unet", "--network mypkg.nets:build", "--trainer mypkg."))


@pytest.mark.skipif(find_spec("monai") is None, reason="needs monai, which is optional")
def test_a_monai_network_works_through_the_shown_function(journey: Journey, project: Path) -> None:
    shutil.copytree(journey.work / "preprocessed", project / "work" / "preprocessed")
    command = ("train", journey.dataset, "--config", "3d_fullres", "--fold", "0")
    trained = call("--work", project / "work", *command, "--network", "mypkg.attention:build", *SHORT)
    assert trained.exit_code == 0, trained.stderr


def test_hooks_are_documented_in_their_order() -> None:
    page = (HOW_TO / "extend.md").read_text().split("## The trainer's hooks")[1]
    names = re.findall(r"\bon_\w+", page.split("```")[1])
    assert [*dict.fromkeys(names)] == [
        *("on_train_start", "on_epoch_start", "on_train_epoch_start", "on_train_epoch_end"),
        *("on_validation_epoch_start", "on_validation_epoch_end", "on_epoch_end", "on_train_end"),
    ]
