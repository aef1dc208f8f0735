"""`run --budget` and `plan --budget`: a plan that fits the time, made once, explained, and used like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from journeys import Journey, call

from segwright.data.plan import Plan
from segwright.planning import time_budget

BUDGET = ("--folds", "0", "--budget", "4s", "--device", "cpu")
NAME = "nnUNetPlans_4s"


@pytest.fixture
def short_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let budgets of seconds be planned for."""
    monkeypatch.setattr(time_budget, "MIN_BUDGET_S", 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("short_budgets")
def test_a_run_makes_a_plan_for_its_budget_and_keeps_it(journey: Journey, tmp_path: Path) -> None:
    work = ("--work", tmp_path)
    done = call("run", journey.dataset, *BUDGET, "--json", *work)
    assert done.exit_code == 0, done.stderr
    model = Path(json.loads(done.stdout)["folds"][0]["model"])
    file = tmp_path / "preprocessed" / journey.dataset.name / f"{NAME}.json"
    made, full = Plan.load(file), Plan.load(file.with_name("nnUNetPlans.json"))
    assert model.name == f"Trainer__{NAME}__3d_fullres"
    sized, planned = made.configuration("3d_fullres"), full.configuration("3d_fullres")
    assert sized.time_budget_s == 4
    assert time_budget.multiply_adds(sized) < time_budget.multiply_adds(planned)
    assert json.loads((model / "fold_0" / "train.json").read_text())["config"]["batch_size"] == sized.batch_size
    assert "which allows" in done.stderr

    before = file.read_bytes()
    again = call("run", journey.dataset, *BUDGET, *work)
    assert again.exit_code == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert file.read_bytes() == before

    explained = call("plan", journey.dataset, "--budget", "4s", "--device", "cpu", "--explain", *work)
    assert "size for 4s" in explained.stdout
    assert "timed steps" in explained.stdout
    assert file.read_bytes() == before

    images = journey.dataset / "imagesTs"
    predicted = call("predict", "--model", model, "-i", images, "-o", tmp_path / "out", "--device", "cpu")
    assert predicted.exit_code == 0, predicted.stderr
    exported = call("export-model", model, tmp_path / "exported.zip")
    assert exported.exit_code == 0, exported.stderr
    tuned = call("train", journey.dataset, "--config", "3d_fullres", "--fold", "1", "--plans", NAME, "--epochs", 1,
                 "--iterations", 1, "--pretrained", model, "--device", "cpu", "--name", "Tuned", *work)  # fmt: skip
    assert tuned.exit_code == 0, tuned.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("short_budgets")
def test_options_overrule_the_plan_of_a_budget(journey: Journey, tmp_path: Path) -> None:
    work = ("--work", tmp_path)
    flat = call("run", journey.dataset, *BUDGET, "--config", "2d", "--set", "batch_size=3", "--json", *work)
    assert flat.exit_code == 0, flat.stderr
    folder = tmp_path / "preprocessed" / journey.dataset.name
    made = Plan.load(folder / f"{NAME}.json")
    assert made.configuration_names == ("2d",)
    assert made.configuration("2d").batch_size == 3

    full = call("run", journey.dataset, *BUDGET, "--plans", "nnUNetPlans", "--json", *work)
    assert full.exit_code == 0, full.stderr
    assert Path(json.loads(full.stdout)["folds"][0]["model"]).name == "Trainer__nnUNetPlans__3d_fullres"

    # A training of the full plan is continued, not begun anew with another plan.
    (folder / f"{NAME}.json").unlink()
    kept = call("run", journey.dataset, *BUDGET, *work)
    assert kept.exit_code == 0, kept.stderr
    assert "training 3d_fullres" not in kept.stderr
    assert not (folder / f"{NAME}.json").exists()


@pytest.mark.usefixtures("short_budgets")
def test_a_budget_that_is_long_enough_keeps_the_full_plan(
    journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "ENOUGH_STEPS", 1)
    monkeypatch.setattr(time_budget, "WANTED_STEPS", 1)
    done = call("plan", journey.dataset, "--budget", "10m", "--device", "cpu", "--json", "--work", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["plans_name"] == "nnUNetPlans"
    assert "the plan without a budget" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("short_budgets")
def test_a_network_of_ones_own_is_trained_with_the_full_plan(journey: Journey, tmp_path: Path) -> None:
    done = call("run", journey.dataset, *BUDGET, "--network", "residual-unet", "--json", "--work", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "network is set, so the plan stays as it is" in done.stderr
    assert "__nnUNetPlans__" in json.loads(done.stdout)["folds"][0]["model"]


def test_a_budget_below_a_minute_only_tries_the_pipeline(journey: Journey) -> None:
    assert journey.model.name == "Trainer__nnUNetPlans__3d_fullres"


def test_a_budget_needs_the_dataset(tmp_path: Path) -> None:
    files = ("--from-fingerprint", tmp_path / "f.json", "--dataset-json", tmp_path / "dataset.json")
    refused = call("plan", *files, "--budget", "10m")
    assert refused.exit_code == 1
    assert "--budget times steps on the dataset" in refused.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("short_budgets")
def test_a_changed_dataset_gives_a_new_plan_but_an_edited_one_is_kept(journey: Journey, tmp_path: Path) -> None:
    dataset = tmp_path / "raw" / journey.dataset.name
    shutil.copytree(journey.dataset, dataset)
    arguments = ("plan", dataset, "--budget", "4s", "--device", "cpu", "--work", tmp_path)
    file = tmp_path / "preprocessed" / dataset.name / f"{NAME}.json"
    assert call(*arguments).exit_code == 0
    before = Plan.load(file).foreground_intensity_properties_per_channel

    case = next((dataset / "labelsTr").iterdir()).name.removesuffix(".nii.gz")
    (dataset / "labelsTr" / f"{case}.nii.gz").unlink()
    (dataset / "imagesTr" / f"{case}_0000.nii.gz").unlink()
    description = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(description | {"numTraining": description["numTraining"] - 1}))
    assert call(*arguments).exit_code == 0
    now = Plan.load(file)
    assert now.foreground_intensity_properties_per_channel != before

    document = now.to_json() | {"foreground_intensity_properties_per_channel": before}
    file.write_text(json.dumps(document))
    kept = call(*arguments)
    assert kept.exit_code == 0
    assert "edited by hand and is kept" in kept.stderr
    assert json.loads(file.read_text()) == document
    assert call(*arguments, "--overwrite").exit_code == 0
    assert Plan.load(file).foreground_intensity_properties_per_channel != before
