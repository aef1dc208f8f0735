"""Training with the skeleton recall loss: batches carry tubes, with regions and an ignore label, in 2D and 3D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segwright.training.losses.skeletons import tubes
from segwright.training.monitoring.step_time import random_batch
from tests.unit.training.tiny_task import DATASET_JSON, REGIONS_JSON, make, settings


@pytest.mark.parametrize(
    ("dataset_json", "configuration", "channels"),
    [(DATASET_JSON, "2d", 2), (REGIONS_JSON, "3d", 4)],
    ids=["labels in 2d", "regions with ignored voxels in 3d"],
)
def test_batches_carry_tubes_and_the_training_uses_them(
    dataset_json: dict[str, Any], configuration: str, channels: int, tmp_path: Path
) -> None:
    config = settings(num_epochs=1, loss="skeleton_recall")
    trainer = make(tmp_path, dataset_json=dataset_json, configuration=configuration, config=config)
    trainer.run_training()
    assert isinstance(trainer.logbook.value("ema_fg_dice"), float)
    batch = trainer.dataloader_train.batch(0, 0)
    assert isinstance(batch["target"], list)
    full, half = batch["target"][:2]
    assert (full.shape[1], half.shape[1]) == (channels, channels)
    expected = tubes(full[:, :1].to(torch.int16), trainer.labels)  # the first region is all foreground
    assert torch.equal(full[:, -1:].bool(), expected)
    halved: Any = (slice(None), *(slice(1, None, 2),) * (half.ndim - 2))
    assert torch.equal(half[:, -1], full[:, -1][halved])
    assert trainer.dataloader_train.batch_bytes >= sum(level.nbytes for level in batch["target"])
    assert random_batch(trainer)["target"][0].shape[1] == channels
