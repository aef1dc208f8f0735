"""A small base class in place of the real one, and trainer files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from segwright.training.monitoring.run_output import RunOutput


class nnUNetTrainer:
    """Takes any arguments."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.arguments = (args, kwargs)


@pytest.fixture(scope="module", autouse=True)
def _without_plots() -> Iterator[None]:
    """Draw nothing: plots take most of the time of a tiny training, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_network", "plot_progress", "plot_progress_if_due"):
            patch.setattr(RunOutput, name, lambda *args, **kwargs: None)
        yield


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """Replace the trainer and the variants of the stand-ins by an empty class."""
    trainer = ModuleType("segwright.compat.nnunet.trainer")
    variants = ModuleType("segwright.compat.nnunet.variants")
    trainer.nnUNetTrainer = nnUNetTrainer  # type: ignore[attr-defined]
    variants.__getattr__ = lambda name: type(name, (nnUNetTrainer,), {})  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, trainer.__name__, trainer)
    monkeypatch.setitem(sys.modules, variants.__name__, variants)
    return nnUNetTrainer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a Python file below a temporary folder."""

    def write_file(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    return write_file
