"""The logger by nnU-Net's interfaces of 2023 and 2026."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from segwright.compat.nnunet.names.logging import MetaLogger, nnUNetLogger
from segwright.core.errors import ConfigError


def test_moving_average_follows_the_pseudo_dice() -> None:
    logger = nnUNetLogger()
    for epoch, dice in enumerate([0.5, math.nan, 1.0]):
        logger.log("mean_fg_dice", dice, epoch)
    assert logger.my_fantastic_logging["ema_fg_dice"] == pytest.approx([0.5, 0.5, 0.55])


def test_second_value_of_an_epoch_replaces_the_first() -> None:
    logger = nnUNetLogger()
    logger.log("mean_fg_dice", 0.5, 0)
    logger.log("mean_fg_dice", 0.7, 0)
    assert logger.my_fantastic_logging["mean_fg_dice"] == logger.get_value("ema_fg_dice") == [0.7]


def test_left_out_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, match="the list has 0 entries"):
        nnUNetLogger().log("lrs", 1, 1)


def test_own_key_needs_a_list() -> None:
    logger = nnUNetLogger()
    with pytest.raises(ConfigError, match=r"no key 'hd95'.*my_fantastic_logging\['hd95'\] = \[\]"):
        logger.log("hd95", 1, 0)
    logger.my_fantastic_logging["hd95"] = []
    logger.log("hd95", 1, 0)
    assert logger.get_value("hd95", -1) == 1


def test_checkpoint_is_restored_and_old_ones_get_all_keys() -> None:
    logger, other = nnUNetLogger(), MetaLogger("folder", resume=True)
    logger.log("lrs", 0.1, 0)
    other.load_checkpoint(logger.get_checkpoint())
    assert other.local_logger.my_fantastic_logging["lrs"] == [0.1]
    other.load_checkpoint({"lrs": [0.2]})
    assert other.get_value("val_losses") == []


def test_curves_are_drawn(tmp_path: Path) -> None:
    logger = nnUNetLogger()
    logger.my_fantastic_logging["names"] = ["text"]
    for epoch in range(2):
        logger.log("train_losses", np.float32(0.5), epoch)
        logger.log("dice_per_class_or_region", [np.float32(0.5), np.float64(0.25)], epoch)
    logger.plot_progress_png(str(tmp_path))
    assert (tmp_path / "progress.png").is_file()
    assert logger.to_logbook().value("dice_per_class_or_region") == [0.5, 0.25]
