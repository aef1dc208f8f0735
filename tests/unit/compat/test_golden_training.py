"""A trainer file trains as on nnU-Net 2.8.1, which recorded the goldens, with the same weights and batches."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from segwright.compat.nnunet.loading import load_trainer_file
from segwright.compat.nnunet.run import NnunetRun
from segwright.training.config import TrainConfig
from tests.unit.training.tiny_task import make

GOLDEN: Final = Path(__file__).parents[2] / "golden" / "trainer"
TASKS: Final = json.loads((GOLDEN / "tasks.json").read_text(encoding="utf-8"))
QUICK: Final = ("labels", "adam")
RECORDED: Final = json.loads((GOLDEN / "recorded.json").read_text(encoding="utf-8"))


def train(name: str, folder: Path) -> Any:
    """Train a task with the trainer file; return what that recorded."""
    task = TASKS["tasks"][name]
    loaded = load_trainer_file(GOLDEN / "fixed_batches_trainer.py", task["trainer"])
    run = make(
        folder,
        partial(NnunetRun, loaded=loaded),  # type: ignore[arg-type]
        plans=TASKS["plans"],
        configuration=task["configuration"],
        dataset_json=TASKS["datasets"][task["dataset"]],
        config=TrainConfig(precision="fp32"),
    )
    run.run_training()
    return json.loads((run.output_folder / "recorded.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECORDED]
)
def test_training_is_that_of_the_reference(name: str, tmp_path: Path) -> None:
    found, expected = train(name, tmp_path), RECORDED[name]
    assert len(found["train_losses"]) == 10
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-4, err_msg=key)
    np.testing.assert_allclose(found["counts"], expected["counts"], atol=3)
    assert found["weights"].keys() == expected["weights"].keys()
    for parameter, (total, norm) in expected["weights"].items():
        if parameter.endswith(".conv.bias"):
            continue  # removed by the normalisation that follows: its gradient is rounding, which Adam scales up
        np.testing.assert_allclose(found["weights"][parameter], [total, norm], rtol=0, atol=1e-4 * max(1, norm))
