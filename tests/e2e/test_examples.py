"""The programs in examples/ run on a phantom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import segwright
from examples import named_network, own_trainer
from segwright.core.errors import ModelError, PlanError
from segwright.data import phantom
from segwright.workspace import Workspace

SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workspace]:
    folder = tmp_path_factory.mktemp("examples")
    dataset, workspace = folder / "raw" / "Dataset900_Phantom", Workspace.under(folder)
    phantom.write_dataset(dataset, edge=16)
    segwright.fingerprint(dataset, workspace=workspace)
    segwright.plan(dataset, workspace=workspace)
    segwright.preprocess(dataset, workspace=workspace, configurations=["3d_fullres"])
    return dataset, workspace


def test_a_name_is_trained_and_predicts_again(prepared: tuple[Path, Workspace]) -> None:
    dataset, workspace = prepared
    dice = named_network.train(
        dataset, workspace, configurations=["3d_fullres"], folds=[1], settings=SHORT, device="cpu"
    )
    assert 0 <= dice["mean"] <= 1
    model = workspace.model_folder(dataset.name, "Trainer", "nnUNetPlans", "3d_fullres")
    assert (
        json.loads((model / "fold_1" / "checkpoint_final.json").read_text())["network"]["reference"] == "residual-unet"
    )
    assert segwright.load_model(model, folds=[1], device="cpu").networks


def test_a_function_is_trained_and_predicts_again(prepared: tuple[Path, Workspace]) -> None:
    dataset, workspace = prepared
    fold = segwright.train(
        dataset,
        workspace=workspace,
        configuration="3d_fullres",
        fold=0,
        network="examples.tiny_network:build",
        network_kwargs={"width": 4},
        settings=SHORT,
        device="cpu",
    )
    header = json.loads((fold.folder / "checkpoint_final.json").read_text())
    assert header["network"] == {"reference": "examples.tiny_network:build", "kwargs": {"width": 4}}
    with pytest.raises(ModelError, match=r"names the network 'examples\.tiny_network:build'.*trust_code=True"):
        segwright.load_model(fold.folder.parent, device="cpu")
    predictor = segwright.load_model(fold.folder.parent, device="cpu", trust_code="examples.tiny_network:build")
    assert sum(parameter.numel() for parameter in predictor.networks[0].parameters()) < 1000


def test_a_subclass_is_trained_and_predicts_again(prepared: tuple[Path, Workspace]) -> None:
    dataset, workspace = prepared
    trainer = own_trainer.TinyTrainer.for_dataset(dataset, "3d_fullres", workspace=workspace, **SHORT, device="cpu")
    trainer.run_training()
    scores = trainer.perform_actual_validation()
    assert len(scores.metric_per_case) == len(trainer.split.val)
    with pytest.raises(ModelError, match="has a training already; continue it with resume=True"):
        own_trainer.TinyTrainer.for_dataset(dataset, "3d_fullres", workspace=workspace, device="cpu")
    again = own_trainer.TinyTrainer.for_dataset(dataset, "3d_fullres", workspace=workspace, resume=True, device="cpu")
    assert again.is_finished
    with pytest.raises(ModelError, match="there is no training to resume"):
        own_trainer.TinyTrainer.for_dataset(dataset, "3d_fullres", fold=1, workspace=workspace, resume=True)
    with pytest.raises(PlanError, match="no such plans; make them with segwright.plan"):
        own_trainer.TinyTrainer.for_dataset(dataset, "3d_fullres", workspace=workspace, plans="others")
    model = workspace.model_folder(dataset.name, "TinyTrainer", "nnUNetPlans", "3d_fullres")
    predictor = segwright.load_model(model, device="cpu", trust_code=True)
    assert type(predictor.networks[0]).__name__ == "Sequential"
