"""Forms of public trainer files: steps without counts, unconditional scalers, random transforms, wrong networks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.compat.nnunet.hooks.iterators import loaders_over
from segwright.compat.nnunet.hooks.randomness import seeded
from segwright.compat.nnunet.loading import load_trainer_file
from segwright.compat.nnunet.trainer import is_before_2_6
from segwright.core.errors import ModelError
from segwright.core.extensions.user_code import UserCodeError
from segwright.training.checkpointing import checkpoints
from segwright.training.config import TrainConfig
from segwright.training.loading.prefetch import prefetch
from tests.unit.compat.trainer_files import TINY_NET, make_run, straight_and_resumed, write_trainer
from tests.unit.training.tiny_task import settings

CPU = torch.device("cpu")

SCALED_STEPS = """
import torch

class nnUNetTrainerScaled(nnUNetTrainer):
    def train_step(self, batch):
        target = [each.to(self.device) for each in batch['target']]
        self.optimizer.zero_grad()
        l = self.loss(self.network(batch['data'].to(self.device)), target)
        self.grad_scaler.scale(l).backward()
        self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        return {'loss': l.detach().cpu().numpy()}

    def validation_step(self, batch):
        with torch.no_grad():
            output = self.network(batch['data'].to(self.device))
        return {'loss': self.loss(output, batch['target']).numpy(), 'sharpness': output[0].std().numpy()}
"""


def test_own_steps_use_the_scaler_on_a_cpu_and_need_no_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, SCALED_STEPS)
    run.run_training()
    assert run.grad_scaler is not None
    assert not run.grad_scaler.is_enabled()
    assert checkpoints.is_finished(run.output_folder)
    assert np.isfinite([row["val_losses"] for row in run.logbook.rows]).all()
    assert not any("mean_fg_dice" in row for row in run.logbook.rows)
    log = next(run.output_folder.glob("*.log")).read_text()
    assert log.count("does not return tp_hard, fp_hard, fn_hard: there is no pseudo Dice") == 1


def draws(_: Any = None) -> dict[str, Any]:
    return {"data": torch.rand(1), "target": torch.tensor([random.random(), np.random.uniform()])}


def endless() -> Any:
    while True:
        yield draws()


@pytest.mark.parametrize("deterministic", [True, False])
def test_own_iterators_repeat_their_random_numbers(deterministic: bool) -> None:
    def batches(first_step: int) -> list[dict[str, Any]]:
        gpu = torch.device("cuda") if not deterministic else CPU  # whose batches a thread makes
        pair = loaders_over([endless(), endless()], seed=3, purpose="batches", device=gpu, deterministic=deterministic)
        return [dict(batch) for batch in prefetch(pair[0], 1, 4, first_step=first_step)]

    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    whole, resumed = batches(0), batches(2)
    for expected, found in zip(whole[2:], resumed, strict=True):
        assert torch.equal(expected["data"], found["data"])
        assert torch.equal(expected["target"], found["target"])
    assert not torch.equal(whole[0]["data"], whole[1]["data"])
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([draws()], r"iterator of the trainer file's training batches ended before step 1 of epoch 0.*without end"),
        ([("data", "target")], "training batches gave a tuple; expected a dict with 'data' and 'target'"),
    ],
)
def test_iterators_that_end_or_give_other_batches_are_named(batches: list[Any], words: str) -> None:
    training, _ = loaders_over([iter(batches), endless()], seed=3, purpose="batches", device=CPU, deterministic=True)
    with pytest.raises(UserCodeError, match=words):
        list(prefetch(training, 0, 2))


def test_seeded_restores_the_generators_after_an_error() -> None:
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1, "test"):
        draws()
        raise KeyError
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


RANDOM_SPLIT = """
import numpy as np
import random

class nnUNetTrainerRandomSplit(nnUNetTrainer):
    def do_split(self):
        train, validation = super().do_split()
        cases = sorted([*train, *validation])
        random.shuffle(cases)
        np.random.shuffle(cases)
        return cases[1:], cases[:1]
"""


def test_random_split_is_the_same_in_every_run(tmp_path: Path) -> None:
    splits = [make_run(tmp_path / name, RANDOM_SPLIT).split for name in ("a", "b")]
    assert splits[0] == splits[1]


MIXUP = """
import numpy as np

class nnUNetTrainerMixed(nnUNetTrainer):
    def train_step(self, batch):
        batch['data'] = batch['data'] * np.random.beta(0.5, 0.5)
        return super().train_step(batch)
"""


@pytest.mark.slow
def test_random_numbers_of_own_steps_are_repeated(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, MIXUP) for name in ("a", "b")]
    for run in runs:
        run.run_training()
    losses = [[row["train_losses"] for row in run.logbook.rows] for run in runs]
    assert losses[0] == losses[1]


NOISY = """
import random
import numpy as np
import torch

def noisy(batches):
    for batch in batches:
        noise = 0.1 * torch.rand(1) + 0.1 * random.random() + 0.1 * np.random.uniform()
        yield {**batch, 'data': batch['data'] + noise}

class nnUNetTrainerNoisy(nnUNetTrainer):
    def get_dataloaders(self):
        training, validation = super().get_dataloaders()
        return noisy(training), noisy(validation)
"""


@pytest.mark.slow
def test_resumed_training_repeats_the_random_numbers_of_own_loaders(tmp_path: Path) -> None:
    whole, second = straight_and_resumed(tmp_path, NOISY)
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], tensor, rtol=0, atol=0)
    assert [row["val_losses"] for row in second.logbook.rows] == [row["val_losses"] for row in whole.logbook.rows]


MORE_CHANNELS = f"""{TINY_NET}
class nnUNetTrainerMoreChannels(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        return TinyNet(num_input_channels + 2, num_output_channels, enable_deep_supervision)

    def _build_loss(self):
        return super()._build_loss()

    def set_deep_supervision_enabled(self, enabled):
        self.network.deep = enabled
"""


def test_network_that_cannot_run_is_refused_before_the_training(tmp_path: Path) -> None:
    run = make_run(tmp_path, MORE_CHANNELS)
    with pytest.raises(ModelError, match=r"nnUNetTrainerMoreChannels: .*input of shape \(1, 1, .* 3 channels"):
        run.initialize()
    assert not run.output_folder.exists()


NO_SEGMENTATION = MORE_CHANNELS.replace("num_input_channels + 2, num_output_channels", "num_input_channels, 7")


def test_network_without_segmentation_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="returns no segmentation, which validation and prediction need"):
        make_run(tmp_path, NO_SEGMENTATION).initialize()


def test_settings_of_a_variant_are_not_reported_as_replaced(tmp_path: Path) -> None:
    text = """
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision)

class nnUNetTrainerFlat(nnUNetTrainerNoDeepSupervision):
    pass
"""
    run = make_run(tmp_path, text)
    assert not run.enable_deep_supervision
    assert run.host.replaced == {}


LATE_LENGTH = """
class nnUNetTrainerLateLength(nnUNetTrainer):
    def initialize(self):
        self.num_iterations_per_epoch = 250
        super().initialize()
        self.num_epochs = 100

    def on_train_start(self):
        super().on_train_start()
        self.num_val_iterations_per_epoch = 50
"""


def test_explicit_length_counts_also_where_a_file_sets_it_late(tmp_path: Path) -> None:
    config = settings(num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    run = make_run(tmp_path, LATE_LENGTH, config=config)
    run.run_training()
    assert [row["steps"] for row in run.logbook.rows] == [2]
    assert run.num_val_iterations_per_epoch == 1


LONG = """
class nnUNetTrainerLong(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 7
"""


def test_resumed_training_keeps_its_length(tmp_path: Path) -> None:
    first = make_run(tmp_path, LONG, config=settings(num_epochs=1))
    first.initialize()
    first.on_train_start()
    latest = checkpoints.find_resumable(first.output_folder)
    assert latest is not None
    second = make_run(tmp_path, LONG, config=TrainConfig())
    second.load_checkpoint(latest)
    assert (second.num_epochs, second.clock.num_epochs) == (1, 1)


OLD_FORM = """
class nnUNetTrainerOldForm(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, unpack_dataset=True, device=None):
        super().__init__(plans, configuration, fold, dataset_json, unpack_dataset, device)

    def get_dataloaders(self):
        from nnunetv2.training.dataloading.{module} import {name}
        return {name}
"""


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [("data_loader", "nnUNetDataLoader", False), ("data_loader_3d", "nnUNetDataLoader3D", True)],
)
def test_version_follows_from_the_loaders_that_a_file_imports(
    module: str, name: str, expected: bool, tmp_path: Path
) -> None:
    file = write_trainer(tmp_path, OLD_FORM.format(module=module, name=name))
    assert is_before_2_6(load_trainer_file(file).cls) is expected
