"""`segwright.train` with a trainer file, and prediction by the command line in a new process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import segwright
from segwright.core.errors import ConfigError
from segwright.data.phantom import write_dataset
from segwright.data.training_data import TrainingData
from segwright.workspace import Workspace
from tests.unit.compat.test_hooks_reached import STORED_DATA, recording
from tests.unit.compat.trainer_files import NETWORK_2023, NOTHING, OLD_LOADERS, TRANSFORMS, write_trainer

pytestmark = pytest.mark.slow

FEW = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("compat")
    write_dataset(root / "raw" / "Dataset001_Phantom", num_training=5, num_test=1, edge=24)
    workspace = Workspace.under(root)
    segwright.run(root / "raw" / "Dataset001_Phantom", workspace=workspace, folds=[0], settings=FEW)
    return workspace


def train(workspace: Workspace, file: Path | str) -> Path:
    trained = segwright.train(
        "Dataset001_Phantom",
        configuration="3d_fullres",
        fold=0,
        workspace=workspace,
        nnunet_trainer=file,
        settings=FEW,
    )
    return trained.folder


def test_model_of_a_file_predicts_in_a_new_process(workspace: Workspace, tmp_path: Path) -> None:
    fold = train(workspace, write_trainer(tmp_path, NETWORK_2023))
    images = workspace.raw / "Dataset001_Phantom" / "imagesTs"
    command = [sys.executable, "-m", "segwright", "predict", "--model", str(fold.parent), "--input", str(images)]
    refused = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert "--trust-code" in refused.stderr
    done = subprocess.run([*command, "--output", str(tmp_path / "out"), "--trust-code"], check=False)
    assert done.returncode == 0
    assert (tmp_path / "out" / "phantom_006.nii.gz").is_file()


def test_cases_of_an_own_split_are_recorded(workspace: Workspace, tmp_path: Path) -> None:
    data = TrainingData.read(train(workspace, write_trainer(tmp_path, TRANSFORMS)))
    assert data is not None
    assert (len(data.train), len(data.val)) == (3, 1)


def test_loaders_of_2023_train(workspace: Workspace, tmp_path: Path) -> None:
    assert (train(workspace, write_trainer(tmp_path, OLD_LOADERS)) / "validation" / "summary.json").is_file()


def test_two_trainers_at_once_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are both set"):
        segwright.train(
            "Dataset001_Phantom",
            configuration="3d_fullres",
            fold=0,
            workspace=workspace,
            trainer="segwright.training.trainer:Trainer",
            nnunet_trainer=write_trainer(tmp_path, NOTHING),
        )


@pytest.mark.parametrize("name", STORED_DATA)
def test_data_hook_that_is_overridden_alone_is_called(name: str, workspace: Workspace, tmp_path: Path) -> None:
    marker = tmp_path / "called"
    text = recording(name).replace("nnUNetTrainerRecording.called.append", f"open({str(marker)!r}, 'a').write")
    train(workspace, write_trainer(tmp_path, text.replace("nnUNetTrainerRecording", f"nnUNetTrainer_{name}")))
    assert marker.is_file()
