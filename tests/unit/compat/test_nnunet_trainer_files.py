"""Trainer files of all interfaces train, resume and predict; where they override nothing, as our trainer does."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from segwright.compat.nnunet.rebuild import NETWORK_REFERENCE
from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.trust import TRUST_ALL, TRUST_NONE
from segwright.core.extensions.user_code import UserCodeError
from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing import checkpoints
from tests.unit.compat.trainer_files import (
    FILES,
    MODERN_2026,
    NETWORK_2024,
    NOTHING,
    OWN_LOOP,
    TEACHER,
    make_run,
    straight_and_resumed,
)
from tests.unit.training.tiny_task import DATASET_JSON, make, settings


def metrics(run: Any, *names: str) -> list[list[Any]]:
    return [[row.get(name) for name in names] for row in run.logbook.rows]


QUICK = ("nnUNetTrainerTiny", "nnUNetTrainerPair", "nnUNetTrainerLoop")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_trainer_file_trains_and_predicts(name: str, tmp_path: Path) -> None:
    before, path = {*sys.modules}, [*sys.path]
    run = make_run(tmp_path, FILES[name])
    run.run_training()
    assert np.isfinite(metrics(run, "train_losses", "val_losses", "ema_fg_dice", "lrs")).all()
    assert len(run.logbook.rows) == 2
    assert checkpoints.is_finished(run.output_folder)
    image = np.zeros((1, 16, 16, 16), dtype=np.float32)
    run.set_deep_supervision_enabled(False)
    predictor = load_predictor(run.output_folder.parent, trust=TRUST_ALL, device="cpu")
    with torch.no_grad():
        expected = run.logits_of(run.network.eval()(torch.from_numpy(image[None])))
        found = predictor.networks[0](torch.from_numpy(image[None]))
    torch.testing.assert_close(found, expected)
    assert not {
        each for each in {*sys.modules} - before if each.startswith(("nnunetv2", "batchgenerators", "trainer_under"))
    }
    assert sys.path == path


def test_file_that_overrides_nothing_has_the_losses_of_our_trainer(tmp_path: Path) -> None:
    run, ours = make_run(tmp_path / "file", NOTHING), make(tmp_path / "ours")
    for each in (run, ours):
        each.run_training()
    names = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs", "dice_per_class_or_region")
    assert metrics(run, *names) == metrics(ours, *names)


@pytest.fixture(scope="module")
def trained_2024(_without_plots: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = make_run(tmp_path_factory.mktemp("network_2024"), NETWORK_2024)
    run.run_training()
    return run


@pytest.fixture(scope="module")
def trained_2026(_without_plots: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = make_run(tmp_path_factory.mktemp("modern_2026"), MODERN_2026)
    run.run_training()
    return run


def test_own_network_is_only_rebuilt_if_its_code_is_trusted_and_unchanged(trained_2024: Any, tmp_path: Path) -> None:
    model = copytree(trained_2024.output_folder.parent, tmp_path / "model")
    with pytest.raises(ModelError, match="--trust-code"):
        load_predictor(model, device="cpu")
    named = TRUST_NONE.with_references(NETWORK_REFERENCE)  # which could be any file
    with pytest.raises(ModelError, match=r"--trust-code \(in Python trust_code=True\)$"):
        load_predictor(model, trust=named, device="cpu")
    copy = next(model.glob("trainer_code/*/*.py"))
    copy.write_text(copy.read_text() + "# changed\n")
    with pytest.raises(ModelError, match="was changed since the training"):
        load_predictor(model, trust=TRUST_ALL, device="cpu")


def test_patch_size_changed_in_init_is_kept_for_prediction(trained_2024: Any) -> None:
    predictor = load_predictor(trained_2024.output_folder.parent, trust=TRUST_ALL, device="cpu")
    assert predictor.configuration.patch_size == (8, 16, 16)


def test_mirror_axes_of_inference_differ_from_those_of_training(trained_2026: Any) -> None:
    assert trained_2026.recipe.mirror_axes == (0, 1)
    predictor = load_predictor(trained_2026.output_folder.parent, trust=TRUST_ALL, device="cpu")
    assert predictor.window.mirror_axes == (0,)


def test_scheduler_of_a_file_decides_the_rates(trained_2026: Any) -> None:
    assert np.allclose(metrics(trained_2026, "lrs"), [[3e-4], [1.5e-4]])


def test_label_map_of_the_dataset_reaches_the_reader_of_a_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, NOTHING, dataset_json={**DATASET_JSON, "label_map": {"255": 2}})
    assert run.user.plans_manager.image_reader_writer_class().label_map == {255: 2}


def test_explicit_setting_replaces_that_of_the_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, f"{NOTHING}    num_epochs = 5\n", config=settings(num_epochs=1))
    assert run.num_epochs == 1


def test_setting_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nnUNetTrainerModern decides it in configure_optimizers"):
        make_run(tmp_path, MODERN_2026, config=settings(schedule="cosine"))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(NOTHING, id="nothing"),
        pytest.param(TEACHER, id="teacher", marks=pytest.mark.slow),
        pytest.param(MODERN_2026, id="modern", marks=pytest.mark.slow),
        pytest.param(OWN_LOOP, id="loop", marks=pytest.mark.slow),
    ],
)
def test_resumed_training_has_the_weights_of_an_uninterrupted_one(text: str, tmp_path: Path) -> None:
    whole, second = straight_and_resumed(tmp_path, text)
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], tensor, rtol=0, atol=0)
    for name, tensor in getattr(whole.user, "teacher", whole.network).state_dict().items():
        restored = getattr(second.user, "teacher", second.network).state_dict()[name]
        torch.testing.assert_close(restored, tensor, rtol=0, atol=0)


def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    text = f"""{NOTHING}
    def configure_optimizers(self):
        return [1, 2], [None, None]
"""
    with pytest.raises(UserCodeError, match="several optimizers are not supported"):
        make_run(tmp_path, text).initialize()


def test_error_in_a_hook_names_its_line(tmp_path: Path) -> None:
    text = f"""{NOTHING}
    def train_step(self, batch):
        return batch['no such key']
"""
    with pytest.raises(UserCodeError, match=r"trainer_under_test.py:\d+: train_step of nnUNetTrainerNothing failed"):
        make_run(tmp_path, text).run_training()
