"""Move plans to another dataset; fine-tune from models of Segwright and nnU-Net."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from journeys import Journey, call

from segwright.data.plan import Plan

SHORT = ("--config", "3d_fullres", "--fold", "0", "--epochs", "1", "--iterations", "1", "--device", "cpu")
SHORT += ("--set", "num_val_iterations_per_epoch=1")
NNUNET = Path(__file__).parents[3] / "shared" / "data" / "reference"


@pytest.fixture
def target(journey: Journey, tmp_path: Path) -> Path:
    """The dataset of the run with a second channel and other names."""
    folder = tmp_path / "raw" / "Dataset008_Target"
    shutil.copytree(journey.dataset, folder)
    for part in ("imagesTr", "imagesTs"):
        for file in sorted((folder / part).iterdir()):
            second = nib.load(file)
            nib.save(second, file.with_name(file.name.replace("_0000", "_0001")))
    document = json.loads((folder / "dataset.json").read_text())
    first = document["channel_names"]["0"]
    document["channel_names"] = {"0": "another", "1": first}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_moved_plans_and_weights_train_a_dataset_with_another_channel(
    journey: Journey, target: Path, tmp_path: Path
) -> None:
    work = ("--work", tmp_path / "work")
    shutil.copytree(journey.preprocessed, tmp_path / "work" / "preprocessed" / journey.dataset.name)
    moved = call(*work, "move-plans", journey.dataset, target, "--name", "sharedPlans")
    assert moved.exit_code == 0, moved.stderr
    plan = Plan.load(tmp_path / "work" / "preprocessed" / target.name / "sharedPlans.json")
    source = Plan.load(journey.preprocessed / "nnUNetPlans.json")
    wanted, given = plan.configuration("3d_fullres"), source.configuration("3d_fullres")
    assert (plan.dataset_name, plan.plans_name, wanted.data_identifier) == (
        target.name,
        "sharedPlans",
        "sharedPlans_3d_fullres",
    )
    assert (wanted.patch_size, wanted.architecture, wanted.spacing) == (
        given.patch_size,
        given.architecture,
        given.spacing,
    )
    assert len(wanted.normalization_schemes) == 2
    again = call(*work, "move-plans", journey.dataset, target, "--name", "sharedPlans")
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    trained = call(*work, "train", target, "--plans", "sharedPlans", *SHORT, "--pretrained", journey.model)
    assert trained.exit_code == 0, trained.stderr
    assert "input channels: another zero" in trained.stderr


def test_plans_of_a_model_keep_its_statistics(journey: Journey, tmp_path: Path) -> None:
    target = tmp_path / "raw" / "Dataset009_Same"
    shutil.copytree(journey.dataset, target)
    moved = call("--work", tmp_path / "work", "move-plans", journey.model, target)
    assert moved.exit_code == 0, moved.stderr
    plan = Plan.load(tmp_path / "work" / "preprocessed" / target.name / "nnUNetPlans.json").to_json()
    source = Plan.load(journey.model / "plans.json").to_json()
    assert plan == {**source, "dataset_name": target.name}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("move-plans", "{dataset}", "{dataset}", "--plans", "nobodysPlans"), "no such plans; plan the source first"),
        (("train", "{dataset}", *SHORT, "--pretrained", "{dataset}"), "no trained model; give a model folder"),
    ],
)
def test_what_is_missing_is_named(journey: Journey, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = call("--work", tmp_path / "w", *(word.format(dataset=journey.dataset) for word in words))
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.skipif(not NNUNET.is_dir(), reason="the reference model of nnU-Net is not there")
def test_a_model_of_nnunet_is_a_source(journey: Journey, tmp_path: Path) -> None:
    [checkpoint] = sorted(NNUNET.rglob("checkpoint_final.pth"))[:1]
    model = checkpoint.parents[1]
    work = ("--work", tmp_path / "work")
    assert call(*work, "move-plans", model, journey.dataset, "--name", "nnunet").exit_code == 0
    trained = call(
        *(*work, "train", journey.dataset, "--plans", "nnunet", *SHORT, "--batch-size", "2", "--pretrained", model)
    )
    assert trained.exit_code == 0, trained.stderr
    assert "0 skipped" in trained.stderr
    assert "heads: background from the source, organ new, lesion new" in trained.stderr
