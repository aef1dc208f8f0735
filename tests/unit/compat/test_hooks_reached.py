"""No method or attribute of a trainer file is ignored silently."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from segwright.compat.nnunet.trainer import nnUNetTrainer
from segwright.compat.nnunet.unreached import hooks_of
from segwright.core.errors import ConfigError
from segwright.core.extensions.user_code import UserCodeError
from segwright.core.interrupt import Interrupted
from segwright.training.checkpointing import checkpoints
from segwright.training.config import TrainConfig
from tests.unit.compat.trainer_files import make_run
from tests.unit.training.tiny_task import DATASET_JSON, settings, write_references

METHODS_OF_2_8_1 = (
    *("initialize", "_do_i_compile", "_save_debug_information", "build_network_architecture"),
    *("_get_deep_supervision_scales", "_set_batch_size_and_oversample", "_build_loss"),
    *("configure_rotation_dummyDA_mirroring_and_inital_patch_size", "print_to_log_file", "print_plans"),
    *("configure_optimizers", "plot_network_architecture", "do_split", "get_tr_and_val_datasets", "get_dataloaders"),
    *("get_training_transforms", "get_validation_transforms", "set_deep_supervision_enabled"),
    *("on_train_start", "on_train_end", "on_train_epoch_start", "train_step", "on_train_epoch_end"),
    *("on_validation_epoch_start", "validation_step", "on_validation_epoch_end", "on_epoch_start", "on_epoch_end"),
    *("save_checkpoint", "load_checkpoint", "perform_actual_validation", "run_training"),
)
"""Every method of nnU-Net's trainer but `__init__`, by introspection of nnunetv2 2.8.1."""

STORED_DATA = (
    *("get_tr_and_val_datasets", "get_training_transforms", "get_validation_transforms", "get_plain_dataloaders"),
)
"""Hooks that read a preprocessed dataset."""

TWICE = ("run_training", "get_dataloaders")
"""Hooks after which others are called by the file's code alone, if at all."""

OWN_ONLY = "is seen by the file's own code only"

HEAD = """
class nnUNetTrainerRecording(nnUNetTrainer):
    called = []
"""

METHOD = """
    {decorator}
    def {name}({first}*args, **kwargs):
        nnUNetTrainerRecording.called.append('{name}')
        return {base}.{name}(*args, **kwargs)
"""


def recording(*names: str) -> str:
    """Return a file that overrides these hooks; each records its call and calls the base's."""
    text = HEAD
    for name in names:
        if isinstance(vars(nnUNetTrainer)[name], staticmethod):
            text += METHOD.format(name=name, decorator="@staticmethod", first="", base="nnUNetTrainer")
        else:
            text += METHOD.format(name=name, decorator="", first="self, ", base="super()")
    return text


def stop(run: Any) -> None:
    run.stop.request("SIGTERM")


def called_in_training(text: str, folder: Path) -> set[str]:
    """Return the hooks that a training calls which is interrupted once, resumed and validated."""
    first = make_run(folder, text, callbacks=[stop], config=settings(num_epochs=1))
    with pytest.raises(Interrupted):
        first.run_training()
    latest = checkpoints.find_resumable(first.output_folder)
    assert latest is not None
    references = write_references(folder / "labels", DATASET_JSON)
    second = make_run(folder, text, config=settings(num_epochs=1), references=references)
    second.load_checkpoint(latest)
    second.run_training()
    second.perform_actual_validation()
    return {*first.loaded.cls.called, *second.loaded.cls.called}


def test_every_method_of_the_reference_is_a_hook() -> None:
    assert {*METHODS_OF_2_8_1} <= hooks_of(nnUNetTrainer)
    assert hooks_of(nnUNetTrainer) - {*METHODS_OF_2_8_1} == {"get_plain_dataloaders"}  # of 2.0 to 2.4


def test_all_hooks_together_are_called(tmp_path: Path) -> None:
    names = [name for name in METHODS_OF_2_8_1 if name not in (*STORED_DATA, *TWICE)]
    assert called_in_training(recording(*names), tmp_path) == {*names}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS_OF_2_8_1 if name not in STORED_DATA])
def test_hook_that_is_overridden_alone_is_called(name: str, tmp_path: Path) -> None:
    assert called_in_training(recording(name), tmp_path) == {name}


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("build_loss", "_build_loss"),
        ("train_steps", "train_step"),
        ("trainStep", "train_step"),
        ("on_epoch_begin", "on_epoch_start"),
        ("on_training_epoch_end", "on_train_epoch_end"),
        ("configure_optimizer", "configure_optimizers"),
        (
            "configure_rotation_dummyDA_mirroring_and_initial_patch_size",
            "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
        ),
    ],
)
def test_misspelt_hook_is_named(name: str, hook: str, tmp_path: Path) -> None:
    text = f"{HEAD}\n    def {name}(self):\n        pass\n"
    with pytest.raises(
        UserCodeError, match=rf"trainer_under_test.py:\d+: nothing calls {name} of nnU.*Recording; .* is called {hook}$"
    ):
        make_run(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "    def build_loss(self):\n        pass\n    def _build_loss(self):\n        return self.build_loss()\n",
        "    def train_step_old(self, batch):\n        pass\n",
        "    def my_build_loss(self):\n        pass\n    def build_loss_ce(self):\n        pass\n",
        "    def train_steps(self):\n        pass\n    def train_step(self, batch):\n        pass\n",
        "    def visualise(self):\n        pass\n",
    ],
    ids=["called", "kept beside", "variants", "has the hook too", "unlike any"],
)
def test_own_method_is_no_misspelt_hook(text: str, tmp_path: Path) -> None:
    make_run(tmp_path, HEAD + text)


def test_hook_outside_of_the_class_is_named(tmp_path: Path) -> None:
    text = f"{HEAD}\ndef train_step(self, batch):\n    pass\n"
    with pytest.raises(UserCodeError, match=r"py:\d+: train_step is outside of the class nnUNetTrainerRecording"):
        make_run(tmp_path, text)


def test_hook_assigned_to_the_object_is_named(tmp_path: Path) -> None:
    text = f"{HEAD}\n    def initialize(self):\n        self.train_step = lambda batch: {{}}\n"
    with pytest.raises(UserCodeError, match="assigns train_step to the object"):
        make_run(tmp_path, text).initialize()


INIT = """
    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        {before}
        super().__init__(plans, configuration, fold, dataset_json, device)
        {after}
"""


def test_deep_supervision_switch_may_be_assigned(tmp_path: Path) -> None:
    after = "self.set_deep_supervision_enabled = lambda enabled: self.called.append('deep supervision')"
    run = make_run(tmp_path, HEAD + INIT.format(before="pass", after=after), config=settings(num_epochs=1))
    run.run_training()
    assert run.loaded.cls.called == ["deep supervision"]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("    num_epochs = 7\n", "num_epochs = 7 of nnUNetTrainerRecording is replaced by 2"),
        (
            INIT.format(before="self.initial_lr = 3", after="pass"),
            "initial_lr = 3 of nnUNetTrainerRecording is",
        ),
        (
            INIT.format(before="pass", after="self.output_folder = '/elsewhere'"),
            f"output_folder = /elsewhere of nnUNetTrainerRecording {OWN_ONLY}",
        ),
        (
            INIT.format(before="pass", after="self.dataset_json = {'labels': {'background': 0}}"),
            "labels that nnUNetTrainerRecording changes are seen by",
        ),
        (
            INIT.format(before="pass", after="self.loss = print"),
            "loss that nnUNetTrainerRecording sets in __init__ is replaced, as in nnU-Net; override _build_loss",
        ),
        (
            INIT.format(before="pass", after="self.inference_allowed_mirroring_axes = (0,)"),
            "override configure_rotation_dummyDA_mirroring_and_inital_patch_size",
        ),
        (
            "    def initialize(self):\n        super().initialize()\n        self.weight_decay = 0.5\n",
            f"weight_decay = 0.5 of nnUNetTrainerRecording {OWN_ONLY}: the model was built with",
        ),
        ("    def _do_i_compile(self):\n        return True\n", "the network is not compiled"),
    ],
)
def test_attribute_without_effect_is_named(members: str, expected: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, HEAD + members)
    run.initialize()
    assert sum(expected in note for note in run.notes) == 1


def test_attribute_that_is_changed_too_late_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = f"""{HEAD}
    def on_train_start(self):
        super().on_train_start()
        self.batch_size = 7

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.probabilistic_oversampling = True
"""
    with caplog.at_level(logging.INFO):
        make_run(tmp_path, text).run_training()
    lines = [record.getMessage() for record in caplog.records if OWN_ONLY in record.getMessage()]
    assert len(lines) == 2
    assert "batch_size = 7 of nnUNetTrainerRecording" in lines[0]
    assert "the loader was built with 3" in lines[0]
    assert "probabilistic_oversampling = True" in lines[1]


@pytest.mark.parametrize("hook", ["initialize", "on_train_start"])
@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
def test_settings_of_the_loop_take_effect_at_any_time(hook: str, is_late: bool, tmp_path: Path) -> None:
    change = (
        "self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 1, 3\n"
        "        self.save_every, self.disable_checkpointing = 1, True"
    )
    order = (f"super().{hook}()", change) if is_late else (change, f"super().{hook}()")
    text = f"""{HEAD}
    def {hook}(self):
        {order[0]}
        {order[1]}

    def validation_step(self, batch):
        self.called.append('validation')
        return super().validation_step(batch)
"""
    run = make_run(tmp_path, text, config=TrainConfig(precision="fp32"))
    run.run_training()
    assert (run.current_epoch, run.current_step) == (1, 1)
    assert run.loaded.cls.called == ["validation"] * 3
    assert not checkpoints.is_finished(run.output_folder)


@pytest.mark.parametrize("hook", ["initialize", "on_train_start"])
def test_settings_of_the_loaders_take_effect_before_they_are_made(hook: str, tmp_path: Path) -> None:
    text = f"""{HEAD}
    def {hook}(self):
        self.batch_size, self.oversample_foreground_percent = 2, 0.5
        super().{hook}()

    def train_step(self, batch):
        self.called.append(batch['data'].shape[0])
        return super().train_step(batch)
"""
    run = make_run(tmp_path, text, config=settings(num_epochs=1))
    run.run_training()
    assert run.loaded.cls.called == [2, 2]
    assert run.config.oversample_foreground_percent == 0.5


def test_epochs_reduced_at_the_end_of_one_end_the_training(tmp_path: Path) -> None:
    text = f"""{HEAD}
    def on_epoch_end(self):
        super().on_epoch_end()
        self.num_epochs = self.current_epoch
"""
    run = make_run(tmp_path, text, config=settings(num_epochs=5))
    run.run_training()
    assert run.current_epoch == 1
    assert checkpoints.is_finished(run.output_folder)


@pytest.mark.parametrize("hook", ["initialize", "on_train_start"])
def test_patch_size_changed_too_late_is_refused(hook: str, tmp_path: Path) -> None:
    text = f"""{HEAD}
    def {hook}(self):
        super().{hook}()
        self.configuration_manager.configuration['patch_size'] = [8, 8, 8]
"""
    with pytest.raises(ConfigError, match=r"changes the patch size \(16, 16, 16\) to \(8, 8, 8\) after __init__"):
        make_run(tmp_path, text).run_training()


def test_dataset_class_without_effect_is_refused(tmp_path: Path) -> None:
    text = f"class Cases:\n    pass\n{HEAD}{INIT.format(before='pass', after='self.dataset_class = Cases')}"
    with pytest.raises(ConfigError, match="dataset_class = Cases of nnUNetTrainerRecording is not used by"):
        make_run(tmp_path, text).initialize()
