"""Published variants are base classes with settings of our trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from segwright.compat.nnunet import variants
from segwright.compat.nnunet.hooks.rules import with_variant_settings
from segwright.compat.nnunet.module_table import VARIANT_NAMES
from segwright.compat.nnunet.trainer import nnUNetTrainer
from segwright.core.errors import ConfigError
from segwright.training.config import TrainConfig
from tests.unit.compat.trainer_files import make_run
from tests.unit.training.tiny_task import settings

VARIANT_FILE = """
from nnunetv2.training.nnUNetTrainer.variants.{module} import {name}

class nnUNetTrainerMine({name}):
    pass
"""


def test_table_has_every_published_name() -> None:
    assert {*variants.VARIANTS} == {*VARIANT_NAMES}


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_variant_is_a_trainer_whose_settings_are_valid(name: str) -> None:
    cls = getattr(variants, name)
    assert issubclass(cls, nnUNetTrainer)
    assert cls.__name__ == name
    for dims in (2, 3):
        with_variant_settings(TrainConfig(), cls, dims)


@pytest.mark.parametrize(
    ("name", "attribute", "expected"),
    [
        ("nnUNetTrainer_250epochs_NoMirroring", "num_epochs", 250),
        ("nnUNetTrainerNoDeepSupervision", "enable_deep_supervision", False),
        ("nnUNetTrainerAdam1en3", "initial_lr", 1e-3),
        ("nnUNetTrainerAdam1en3", "optimizer", "adamw"),
        ("nnUNetTrainerDA5_10epochs", "augmentation", "strong"),
        ("nnUNetTrainer_onlyMirror01_1500ep", "mirror_axes", (0, 1)),
        ("nnUNetTrainerBN", "norm", "batch"),
        ("nnUNetTrainerDiceTopK10Loss", "loss", "dice_topk10"),
    ],
)
def test_variant_stands_for_its_settings(name: str, attribute: str, expected: object) -> None:
    config = with_variant_settings(TrainConfig(), getattr(variants, name), 3)
    assert getattr(config, attribute) == expected


def test_file_of_a_variant_trains_with_its_settings(tmp_path: Path) -> None:
    file = VARIANT_FILE.format(module="optimizer.nnUNetTrainerAdam", name="nnUNetTrainerVanillaAdam3en4")
    run = make_run(tmp_path, file, config=settings(num_epochs=1))
    run.initialize()
    assert type(run.optimizer).__name__ == "Adam"
    assert run.initial_lr == 3e-4


def test_variant_that_cannot_be_trained_says_why(tmp_path: Path) -> None:
    file = VARIANT_FILE.format(module="optimizer.nnUNetTrainerAdan", name="nnUNetTrainerAdan")
    with pytest.raises(ConfigError, match="nnUNetTrainerAdan cannot be trained: its optimizer is in"):
        make_run(tmp_path, file)
