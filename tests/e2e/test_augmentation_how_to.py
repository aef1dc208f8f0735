"""The custom recipe in docs/how-to/augmentation.md works as shown."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from journeys import Journey, call

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "augmentation.md"
_BLOCK = re.compile(r"^```(python)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("verb", ["preview-augmentation", "train"])
def test_the_shown_transform_and_commands_work(
    journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    (program,) = [text for language, text in blocks if language == "python"]
    file = tmp_path / program.splitlines()[0].removeprefix("# ")
    file.parent.mkdir()
    file.write_text(program)
    monkeypatch.chdir(tmp_path)
    lines = [line for language, text in blocks if not language for line in text.splitlines()]
    (command,) = [line for line in lines if line.startswith(f"segwright {verb}") and "mypkg.stripes:recipe" in line]
    words = [str(journey.dataset) if word == "DATASET" else word for word in shlex.split(command)[1:]]
    work = journey.work
    if verb == "train":
        shutil.copytree(journey.work / "preprocessed", tmp_path / "work" / "preprocessed")
        work = tmp_path / "work"
        words += ["--epochs", "1", "--iterations", "3", "--batch-size", "4", "--device", "cpu"]
        words += ["--set", "num_val_iterations_per_epoch=1"]
    else:
        words += ["-o", "page.html", "--set", "seed=2"]
    result = call("--work", work, *words)
    sys.modules.pop("mypkg.stripes", None)
    sys.modules.pop("mypkg", None)
    assert result.exit_code == 0, result.output
    if verb != "train":
        text = Path("page.html").read_text(encoding="utf-8")
        assert "spatial, noise, stripes, blur" in text
        assert '<th scope="row">stripes</th><td>shift' in text
