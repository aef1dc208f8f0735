"""Each verb on its own."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from journeys import Journey, call, states

from segwright import api
from segwright.workspace import Workspace


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_step_by_step(tiny: Path, work: Path) -> None:
    assert call("check", tiny, "--work", work).exit_code == 0
    assert not work.exists()
    measured = call("fingerprint", tiny, "--work", work)
    assert "6 cases" in measured.stdout
    planned = call("plan", tiny, "--work", work, "--explain", "--device", "cpu")
    assert "3d_fullres" in planned.stdout
    assert "patch_size" in planned.stdout or "patch size" in planned.stdout
    assert "About what a training of one fold takes on this machine" in planned.stdout
    made = call("preprocess", tiny, "--work", work, "--config", "2d", "3d_fullres", "--workers", 1)
    assert "3d_fullres: 6 cases preprocessed, 0 kept" in made.stdout
    again = call("preprocess", tiny, "--work", work, "--config", "2d,3d_fullres")
    assert "2d: 0 cases preprocessed, 6 kept" in again.stdout
    fast = ["--budget", "1s", "--batch-size", 2, "--seed", 1, "--device", "cpu"]
    trained = call("train", tiny, "--work", work, "--config", "2d", "--fold", 1, *fast)
    assert trained.exit_code == 0, trained.stderr
    assert "organ" in trained.stdout
    refused = call("train", tiny, "--work", work, "--config", "2d", "--fold", 1, *fast)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "continue it with --resume, or delete the folder" in refused.stderr


def test_the_cost_of_a_plan_is_that_of_its_training(journey: Journey, tmp_path: Path) -> None:
    place = Workspace.under(tmp_path / "work")
    made = api.plan(journey.dataset, workspace=place)
    before = states(place.preprocessed)
    costs = api.training_costs(journey.dataset, made, workspace=place, device="cpu")
    assert states(place.preprocessed) == before
    assert [*costs] == ["2d", "3d_fullres"]
    stored = [path for path in made_cases(journey, "3d_fullres").iterdir() if path.is_file()]
    cost = costs["3d_fullres"]
    assert cost.cases_bytes == pytest.approx(sum(path.stat().st_size for path in stored), rel=0.25)
    assert cost.training.epoch_s == pytest.approx(cost.training.step_s * (250 + 50 / 3))
    again = api.training_costs(
        journey.dataset, made, workspace=Workspace.under(journey.work), device="cpu", budget="10m"
    )["3d_fullres"]
    assert again.cases_bytes == sum(path.stat().st_size for path in stored)
    assert again.training.num_epochs is None
    assert again.training.checkpoint_bytes == cost.training.checkpoint_bytes


def made_cases(journey: Journey, configuration: str) -> Path:
    """Return the folder of a configuration's preprocessed cases."""
    (folder,) = journey.preprocessed.glob(f"segwright_*{configuration}")
    return folder


def test_plan_from_a_fingerprint_equals_the_plan_of_the_dataset(journey: Journey, tmp_path: Path) -> None:
    file = tmp_path / "plans.json"
    fingerprint = journey.preprocessed / "dataset_fingerprint.json"
    description = journey.preprocessed / "dataset.json"
    done = call("plan", "--from-fingerprint", fingerprint, "--dataset-json", description, "-o", file)
    assert done.exit_code == 0, done.stderr
    ours = json.loads((journey.preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8"))
    assert json.loads(file.read_text(encoding="utf-8")) == ours


def test_plan_options_reach_the_planner(journey: Journey, tmp_path: Path) -> None:
    file = tmp_path / "plans.json"
    source = ("--from-fingerprint", journey.preprocessed / "dataset_fingerprint.json")
    more = (
        "--dataset-json",
        journey.preprocessed / "dataset.json",
        "-o",
        file,
        "--name",
        "Mine",
        "--preset",
        "resenc-m",
    )
    done = call("plan", *source, *more, "--spacing", 2, 1.5, 1, "--resampling", "torch", "--gpu-memory", 20)
    assert done.exit_code == 0, done.stderr
    plan = json.loads(file.read_text(encoding="utf-8"))
    configuration = plan["configurations"]["3d_fullres"]
    assert plan["plans_name"] == "Mine"
    assert sorted(configuration["spacing"]) == [1, 1.5, 2]
    assert configuration["resampling_fn_data"] == "resample_torch_fornnunet"
    assert configuration["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert plan["segwright"]["gpu_memory_gb"] == 20


def test_predict_and_evaluate(journey: Journey, tmp_path: Path) -> None:
    images = journey.dataset / "imagesTs"
    before = states(journey.dataset)
    out = tmp_path / "out"
    predicted = call(
        "predict", "--model", journey.model, "-i", images, "-o", out, "--probabilities", "npz", "--no-mirroring"
    )
    assert predicted.exit_code == 0, predicted.stderr
    assert "2 cases" in predicted.stdout
    assert states(journey.dataset) == before
    for file in sorted(images.iterdir()):
        case = file.name.removesuffix("_0000.nii.gz")
        label, image = nib.load(out / f"{case}.nii.gz"), nib.load(file)
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine)
        with np.load(out / f"{case}.npz") as archive:
            probabilities = archive["probabilities"]
        assert probabilities.shape == (3, *reversed(image.shape))
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(axis=0).T, np.asarray(label.dataobj))
    summary = tmp_path / "summary.json"
    scored = call("evaluate", journey.dataset / "labelsTs", out, "-o", summary)
    assert scored.exit_code == 0, scored.stderr
    assert "lesion" in scored.stdout
    assert set(json.loads(summary.read_text(encoding="utf-8"))["mean"]) == {"1", "2"}


def test_the_demo_in_json_prints_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segwright.data import phantom

    small = phantom.write_dataset
    monkeypatch.setattr(phantom, "write_dataset", lambda folder: small(folder, num_training=5, num_test=1, edge=16))
    done = call("demo", "--json", "-o", tmp_path / "demo", "--budget", "2s", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"mean_dice", "per_label", "seconds", "model", "pictures", "report", "shortcoming"}
    assert "Predictions in predictions" in Path(result["report"]).read_text(encoding="utf-8")
    assert set(result["per_label"]) == {"organ", "lesion"}
    assert [Path(picture).read_bytes()[:4] for picture in result["pictures"]] == [b"\x89PNG"]
    assert (Path(result["model"]) / "fold_all" / "checkpoint_final.safetensors").is_file()
    again = call("demo", "--json", "-o", tmp_path / "demo", "--budget", "2s", "--device", "cpu")
    assert json.loads(again.stdout)["mean_dice"] == result["mean_dice"]
