"""The trainer on a GPU: every precision, the CPU's results, resuming; models predict on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing.checkpoints import find_resumable
from segwright.training.config import TrainConfig
from segwright.training.execution import choice
from tests.unit.training.test_trainer import DyingTrainer, Killed, final_weights
from tests.unit.training.tiny_task import DATASET_JSON, REGIONS_JSON, TinyStore, make, settings, write_references

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_task_is_learned(tmp_path: Path, precision: str, cache: str) -> None:
    config = settings(
        num_epochs=4, num_iterations_per_epoch=15, num_val_iterations_per_epoch=4, momentum=0.9,
        precision=precision, cache=cache,
    )  # fmt: skip
    references = write_references(tmp_path / "labelsTr", DATASET_JSON)
    trainer = make(tmp_path, device="cuda", config=config, references=references)
    trainer.run_training()
    assert trainer.perform_actual_validation().mean_dice > 0.6
    assert {parameter.device.type for parameter in trainer.network.parameters()} == {"cuda"}


@pytest.mark.parametrize("dims", [2, 3])
def test_first_losses_are_those_of_the_cpu(tmp_path: Path, dims: int) -> None:
    losses = []
    for device in ("cuda", "cpu"):
        config = settings(num_epochs=1, num_iterations_per_epoch=3, augmentation="none")
        trainer = make(tmp_path / device, device=device, configuration=f"{dims}d", config=config)
        trainer.run_training()
        losses.append([*trainer.logbook.column("train_losses"), *trainer.logbook.column("val_losses")])
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resumed_run_goes_on_where_it_stopped(tmp_path: Path, precision: str) -> None:
    config = settings(num_iterations_per_epoch=3, precision=precision)
    whole = make(tmp_path / "whole", device="cuda", config=config)
    whole.run_training()
    dying = make(tmp_path / "parts", DyingTrainer, device="cuda", config=config)
    dying.steps_left = 4
    with pytest.raises(Killed):
        dying.run_training()
    resumed = make(tmp_path / "parts", device="cuda", config=TrainConfig())
    checkpoint = find_resumable(resumed.output_folder)
    assert checkpoint is not None
    resumed.load_checkpoint(checkpoint)
    resumed.run_training()
    # Gradients are summed in any order on a GPU, so the last bits differ between two runs without a stop as well.
    torch.testing.assert_close(final_weights(resumed), final_weights(whole), rtol=1e-2, atol=1e-3)


def test_model_trained_on_a_gpu_predicts_on_both(tmp_path: Path) -> None:
    config = settings(num_epochs=3, num_iterations_per_epoch=15, momentum=0.9)
    trainer = make(tmp_path, device="cuda", config=config)
    trainer.run_training()
    image: Any = TinyStore().load("case_3").image
    found = {}
    for device in ("cuda", "cpu"):
        predictor = load_predictor(tmp_path, device=device, precision="fp32")
        found[device] = predictor.predict_preprocessed(image)
    assert found["cuda"].device.type == "cpu"
    np.testing.assert_allclose(
        torch.softmax(found["cuda"], 0).numpy(), torch.softmax(found["cpu"], 0).numpy(), atol=5e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dims", [2, 3])
def test_compiled_steps_and_cuda_graphs_have_the_plain_losses(
    tmp_path: Path, precision: str, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice.Trial, "median_s", 1.0)  # compiled steps count as fast as plain ones
    losses, ways = {}, []
    for setting in ("off", "on"):
        config = settings(num_epochs=5, num_iterations_per_epoch=20, precision=precision, compile=setting)
        trainer = make(tmp_path / setting, device="cuda", configuration=f"{dims}d", config=config)
        trainer.run_training()
        losses[setting] = trainer.logbook.column("train_losses")
        ways.append(trainer.execution.way)
    assert ways == [choice.PLAIN, choice.GRAPHS]
    assert losses["on"] == pytest.approx(losses["off"], abs=5e-3 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("dataset_json", [DATASET_JSON, REGIONS_JSON], ids=["labels", "regions"])
def test_the_host_does_not_wait_for_a_step(tmp_path: Path, precision: str, dataset_json: dict[str, Any]) -> None:
    trainer = make(
        tmp_path, device="cuda", config=settings(precision=precision, compile="off"), dataset_json=dataset_json
    )
    trainer.initialize()
    heads, first = trainer.labels.num_heads, torch.zeros(3, 1, 16, 16, 16)
    full = first.short() if heads == 3 else torch.zeros(3, heads + 1, 16, 16, 16, dtype=torch.bool)  # and the ignored
    batch: Any = {"data": first, "target": [full, full[..., ::2, ::2, ::2]], "keys": []}
    trainer.train_step(batch)  # is checked, and loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
