"""Trainings with trainer files leave the modules and search path of the process as they were, however they end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segwright.core.extensions.user_code import UserCodeError
from tests.unit.compat.trainer_files import MODERN_2026, NETWORK_2023, NOTHING, make_run
from tests.unit.training.tiny_task import settings

IMPORTING = """
import sys

class nnUNetTrainerImporting(nnUNetTrainer):
    def train_step(self, batch):
        from nnunetv2.utilities.helpers import dummy_context
        sys.path.insert(0, '/nowhere')
        {end}
"""


@contextmanager
def unchanged_modules() -> Iterator[None]:
    modules, path, finders = dict(sys.modules), [*sys.path], [*sys.meta_path]
    yield
    assert {*sys.modules} == {*modules}
    assert all(sys.modules[name] is module for name, module in modules.items())
    assert (sys.path, sys.meta_path) == (path, finders)


def train(folder: Path, text: str) -> None:
    make_run(folder, text, config=settings(num_epochs=1, num_iterations_per_epoch=1)).run_training()


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_imported(_without_plots: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train once, so that what torch and others import at first use is there before."""
    folder = tmp_path_factory.mktemp("modules")
    train(folder / "first", NOTHING)
    train(folder / "optimizer", MODERN_2026)


def test_files_of_two_eras_train_one_after_the_other(tmp_path: Path) -> None:
    with unchanged_modules():
        train(tmp_path / "2023", NETWORK_2023)
        train(tmp_path / "2026", MODERN_2026)
        train(tmp_path / "2023 again", NETWORK_2023)


def test_training_that_fails(tmp_path: Path) -> None:
    with unchanged_modules(), pytest.raises(UserCodeError, match="ValueError: planned"):
        train(tmp_path, IMPORTING.format(end="raise ValueError('planned')"))


def test_training_that_is_interrupted(tmp_path: Path) -> None:
    with unchanged_modules(), pytest.raises(KeyboardInterrupt):
        train(tmp_path, IMPORTING.format(end="raise KeyboardInterrupt"))


def test_training_that_succeeds_with_imports_in_a_hook(tmp_path: Path) -> None:
    with unchanged_modules():
        train(tmp_path, IMPORTING.format(end="return super().train_step(batch)"))


@pytest.mark.slow
def test_import_of_the_package_defines_no_module_of_nnunet() -> None:
    code = "import segwright.api, segwright.compat.nnunet.run, sys; print([n for n in sys.modules if 'nnunetv2' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
