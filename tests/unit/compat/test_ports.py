"""The trainer files on docs/how-to/nnunet-trainers.md and their ports train with equal losses."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from segwright.compat.nnunet.loading import load_trainer_file
from segwright.compat.nnunet.run import NnunetRun
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make, settings

PAGE: Final = Path(__file__).parents[3] / "docs" / "how-to" / "nnunet-trainers.md"
FILES: Final = {
    text.partition("\n")[0].removeprefix("# "): text.partition("\n")[2]
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
}
PORTS: Final = {
    "network": ("nnUNetTrainerTwoLevels.py", "two_levels_trainer.py"),
    "loss": ("nnUNetTrainerFocal.py", "focal.py"),
    "optimizer and schedule": ("nnUNetTrainerCosine.py", "cosine_trainer.py"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page, from which the ports can be imported."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def trained(folder: Path, kind: Any, **values: Any) -> list[tuple[Any, ...]]:
    """Return losses and learning rates of a short training."""
    run = make(folder, kind, config=settings(**values))
    run.run_training()
    return [(row["train_losses"], row["val_losses"], row["lrs"]) for row in run.logbook.rows]


@pytest.mark.slow
@pytest.mark.parametrize("change", PORTS)
def test_port_trains_with_the_losses_of_the_file(change: str, folder: Path) -> None:
    file, port = PORTS[change]
    loaded = load_trainer_file(folder / file)
    expected = trained(folder / "file", partial(NnunetRun, loaded=loaded))
    module = import_module(port.removesuffix(".py"))
    if port == "focal.py":
        found = trained(folder / "port", Trainer, loss=module.focal)
    else:
        [kind] = [value for name, value in vars(module).items() if name.endswith("Trainer")]
        found = trained(folder / "port", kind)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_settings_replace_the_optimizer_and_schedule_of_a_file(folder: Path) -> None:
    expected = trained(folder / "file", partial(NnunetRun, loaded=load_trainer_file(folder / "nnUNetTrainerCosine.py")))
    found = trained(folder / "settings", Trainer, optimizer="adamw", initial_lr=3e-4, schedule="cosine")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("change", PORTS)
def test_line_counts_of_the_page_are_right(change: str) -> None:
    before, after = (sum(bool(line.strip()) for line in FILES[name].splitlines()) for name in PORTS[change])
    assert f"| {change} | {before} lines | {after} lines |" in PAGE.read_text(encoding="utf-8")
