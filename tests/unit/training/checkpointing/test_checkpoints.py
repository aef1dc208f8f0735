"""Checkpoints: atomic writes, exact restoring, recovery from damage, and refusal where they do not fit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.trust import TRUST_ALL, TRUST_NONE
from segwright.core.files.json_documents import has_valid_checksum
from segwright.networks.checkpoint import load_weights, save_weights
from segwright.training.checkpointing import checkpoints
from segwright.training.checkpointing.checkpoints import CheckpointState, losses_to_json
from segwright.training.checkpointing.resume import require_same_training, resumed_config
from segwright.training.config import TrainConfig
from tests.unit.training.tiny_task import settings

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
MOMENTUM = {"momentum_buffer/layer.weight": torch.full((2, 3), 0.1)}
IDENTITY = {"trainer": "Trainer", "configuration": "3d", "fold": 0, "plans_hash": "abc", "dataset_hash": "def"}


def state(step: int = 5, config: TrainConfig | None = None, **values: Any) -> CheckpointState:
    config = config or settings()
    given: dict[str, Any] = {
        **IDENTITY,
        "network": {"reference": "unet", "kwargs": {}},
        "epoch": 2,
        "step": step,
        "elapsed_s": 12.5,
        "mirror_axes": (0, 1),
        "logging": [{"epoch": 0, "ema_fg_dice": None}],
        "best_ema": None,
        "config": config.model_dump(mode="json"),
        "config_set": sorted(config.model_fields_set),
        **values,
    }
    return CheckpointState(**given)


def test_loaded_checkpoint_equals_the_saved_one(tmp_path: Path) -> None:
    saved = state(epoch_losses=losses_to_json([torch.tensor(0.1), torch.tensor(math.nan)]))
    path = checkpoints.save(tmp_path, "latest", saved, WEIGHTS, optimizer=MOMENTUM)
    found = checkpoints.load(path)
    assert found.state == saved.model_copy(update={"optimizer_file": found.state.optimizer_file})
    torch.testing.assert_close(found.weights, WEIGHTS, rtol=0, atol=0)
    torch.testing.assert_close(found.optimizer, MOMENTUM, rtol=0, atol=0)
    losses = found.state.losses
    assert float(losses[0]) == float(torch.tensor(0.1))
    assert math.isnan(float(losses[1]))


def test_json_beside_the_weights_is_the_same_state(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, "final", state(), WEIGHTS)
    document = json.loads(path.with_suffix(".json").read_text())
    assert has_valid_checksum(document)
    assert document.pop("checksum")
    assert document == checkpoints.read_state(path).model_dump(mode="json")
    assert document["mirror_axes"] == [0, 1]


def test_the_two_newest_optimizer_files_stay(tmp_path: Path) -> None:
    for step in (5, 9, 12):
        checkpoints.save(tmp_path, "latest", state(step), WEIGHTS, optimizer=MOMENTUM)
    names = {f"checkpoint_latest_optimizer_{step}.safetensors" for step in (9, 12)}
    assert {path.name for path in tmp_path.glob("*optimizer*")} == names


def flipped(path: Path, bit: int) -> bytes:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def two_saved(folder: Path) -> Path:
    """Save two checkpoints and return the later one's weights file."""
    checkpoints.save(folder, "latest", state(5, epoch=1), WEIGHTS, optimizer=MOMENTUM)
    newer = {"momentum_buffer/layer.weight": torch.full((2, 3), 0.2)}
    return checkpoints.save(folder, "latest", state(9), {"layer.weight": torch.ones(2, 3)}, optimizer=newer)


@pytest.mark.parametrize("name", ["checkpoint_latest", "checkpoint_latest_optimizer_9"])
@pytest.mark.parametrize("links", [True, False])
def test_a_flipped_bit_falls_back_to_the_previous_checkpoint(
    tmp_path: Path, name: str, links: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    two_saved(tmp_path)
    path = tmp_path / f"{name}.safetensors"
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).integers(0, len(whole) * 8, 60).tolist():
        path.write_bytes(flipped(path, bit))
        found = checkpoints.find_resumable(tmp_path)
        assert found is not None
        checkpoint = checkpoints.load(found)
        if checkpoint.state.step == 9 and b"segwright_crc32" not in path.read_bytes():  # this word alone was hit
            path.write_bytes(whole)
            continue
        assert checkpoint.state.step == 5
        torch.testing.assert_close(checkpoint.weights, WEIGHTS, rtol=0, atol=0)
        torch.testing.assert_close(checkpoint.optimizer, MOMENTUM, rtol=0, atol=0)
        path.write_bytes(whole)
    assert "resuming from the previous checkpoint, of epoch 1" in caplog.text
    assert "damaged (its checksum" in caplog.text
    assert checkpoints.find_resumable(tmp_path) == checkpoints.checkpoint_file(tmp_path, "latest")


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    two_saved(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no other checkpoint is left: remove .* to train again"):
        checkpoints.find_resumable(tmp_path)


def test_weights_without_a_checksum_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(load_weights(tmp_path / "w.safetensors"), WEIGHTS, rtol=0, atol=0)


@pytest.mark.parametrize("writes", range(5))
def test_a_kill_between_any_two_writes_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    checkpoints.save(tmp_path, "latest", state(5), WEIGHTS, optimizer=MOMENTUM)
    done = 0

    def dying(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done == writes:
                raise KeyboardInterrupt
            done += 1
            return function(*arguments, **options)

        return wrapped

    for name in ("save_weights", "write_weights", "_keep_as_previous", "write_json", "_remove_unused_optimizers"):
        monkeypatch.setattr(checkpoints, name, dying(getattr(checkpoints, name)))
    newer = {"momentum_buffer/layer.weight": torch.full((2, 3), 0.2)}
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, "latest", state(9), {"layer.weight": torch.ones(2, 3)}, optimizer=newer)
    monkeypatch.undo()
    path = checkpoints.find_resumable(tmp_path)
    assert path is not None
    found = checkpoints.load(path)
    is_new = found.state.step == 9
    assert is_new == (writes >= 3)
    assert float(found.weights["layer.weight"][0, 1]) == 1.0
    assert float(found.weights["layer.weight"][0, 0]) == (1.0 if is_new else 0.0)
    assert float(found.optimizer["momentum_buffer/layer.weight"][0, 0]) == pytest.approx(0.2 if is_new else 0.1)


def test_final_checkpoint_is_preferred_and_needs_its_json(tmp_path: Path) -> None:
    assert checkpoints.find_resumable(tmp_path) is None
    checkpoints.save(tmp_path, "latest", state(), WEIGHTS, optimizer=MOMENTUM)
    final = checkpoints.save(tmp_path, "final", state(), WEIGHTS)
    assert checkpoints.find_resumable(tmp_path) == final
    final.with_suffix(".json").unlink()
    assert not checkpoints.is_finished(tmp_path)
    assert checkpoints.find_resumable(tmp_path) == checkpoints.checkpoint_file(tmp_path, "latest")


def test_a_damaged_final_checkpoint_falls_back_to_the_latest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    latest = checkpoints.save(tmp_path, "latest", state(epoch=1), WEIGHTS, optimizer=MOMENTUM)
    final = checkpoints.save(tmp_path, "final", state(), WEIGHTS)
    final.write_bytes(flipped(final, 8 * (final.stat().st_size - 4)))
    assert checkpoints.find_resumable(tmp_path) == latest
    assert "checkpoint_final.safetensors: damaged" in caplog.text
    assert "resuming from the previous checkpoint, of epoch 1" in caplog.text
    assert not checkpoints.is_finished(tmp_path)


def test_a_damaged_final_checkpoint_without_another_is_kept_and_named(tmp_path: Path) -> None:
    final = checkpoints.save(tmp_path, "final", state(), WEIGHTS)
    final.write_bytes(flipped(final, 8 * (final.stat().st_size - 4)))
    with pytest.raises(ModelError, match="no other checkpoint is left: remove .* to train again"):
        checkpoints.find_resumable(tmp_path)
    assert checkpoints.is_finished(tmp_path)


def test_deleted_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, "latest", state(), WEIGHTS, optimizer=MOMENTUM)
    checkpoints.delete(tmp_path, "latest")
    assert not list(tmp_path.iterdir())


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, "latest", state(), WEIGHTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="checkpoint_latest.safetensors: damaged"):
        checkpoints.load(path)


def test_weights_without_a_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", WEIGHTS)
    with pytest.raises(ModelError, match="no training state to resume"):
        checkpoints.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("trainer", "MyTrainer", "trainer is MyTrainer, not Trainer"),
        ("configuration", "2d", "configuration is 2d, not 3d"),
        ("fold", "all", "fold is all, not 0"),
        ("plans_hash", "other", "the plan has changed"),
    ],
)
def test_checkpoint_of_another_training_is_refused(key: str, value: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        require_same_training(state(**{key: value}), IDENTITY, Path("c.safetensors"))


def test_other_labels_are_refused_and_an_earlier_version_s_checkpoint_is_not() -> None:
    require_same_training(state(dataset_hash=None), IDENTITY, Path("c"))
    with pytest.raises(ModelError, match=r"labels or channels of dataset\.json have changed since"):
        require_same_training(state(dataset_hash="other"), IDENTITY, Path("c"))


def test_resumed_training_has_the_checkpoint_s_settings() -> None:
    before = settings(seed=7, batch_size=2)
    found = resumed_config(TrainConfig(), state(config=before), Path("c"))
    assert found == before
    assert found.model_fields_set == before.model_fields_set


def test_length_may_change_after_a_resume() -> None:
    found = resumed_config(TrainConfig(num_epochs=9), state(), Path("c"))
    assert (found.num_epochs, found.num_iterations_per_epoch) == (9, 2)


REFERENCES = {
    "network": "evil:build",
    "loss": "evil:loss",
    "optimizer": "evil:optimizer",
    "schedule": "warmup+evil:schedule",
    "sampler": "evil:sampler",
    "augmentation": "evil:recipe",
    "callbacks": ["shutil:rmtree"],
    "loggers": ["tensorboard", "shutil:rmtree"],
}


@pytest.mark.parametrize("setting", REFERENCES)
def test_code_that_only_a_checkpoint_names_is_not_imported(setting: str) -> None:
    config = TrainConfig.from_mapping({setting: REFERENCES[setting]})
    with pytest.raises(ModelError, match=rf"c: names the {setting} '(evil|shutil):.*--trust-code.*{setting}"):
        resumed_config(TrainConfig(), state(config=config), Path("c"), TRUST_NONE.with_references("other:thing"))


def test_every_setting_that_may_name_code_is_known_to_be_one() -> None:
    named = {name for name, field in TrainConfig.model_fields.items() if "str" in str(field.annotation)}
    assert named - {*REFERENCES} == {
        *(f"{name}_kwargs" for name in ("optimizer", "network", "loss", "sampler", "augmentation")),
        "lr_groups",  # values, which are code nowhere
        "pretrained",  # a path, which a resumed training does not open
    }


def test_code_of_a_checkpoint_that_is_named_again_or_trusted_is_used() -> None:
    reference = f"{__name__}:state"
    before = state(config=settings(loss=reference, loggers=(reference,)))
    for trust in (TRUST_ALL, TRUST_NONE.with_references(reference)):
        assert resumed_config(TrainConfig(), before, Path("c"), trust).loss == reference


def test_other_settings_may_not_change_after_a_resume() -> None:
    with pytest.raises(ConfigError, match="was trained with seed = 12345, now 1; resume with the same value"):
        resumed_config(TrainConfig(seed=1), state(), Path("c"))
