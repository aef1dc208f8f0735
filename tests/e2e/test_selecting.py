"""Selection among two configurations with folds 0 and 2; the selected model is self-contained."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journeys import call, states

from segwright import api
from segwright.data.images.image_io import read_images, read_label
from segwright.data.labels import Labels
from segwright.data.phantom import write_dataset
from segwright.evaluation.scores import evaluate_case
from segwright.inference.models.selected import read_selected
from segwright.report.results import SelectionReport
from segwright.workspace import Workspace

READER = "SimpleITKIO"
SHORT: dict[str, Any] = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
MODELS = ("Trainer__nnUNetPlans__2d", "Trainer__nnUNetPlans__3d_fullres")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a tiny dataset and four short trainings; tests copy it."""
    work = tmp_path_factory.mktemp("selecting")
    workspace = Workspace.under(work)
    dataset = workspace.raw / "Dataset007_Tiny"
    write_dataset(dataset, num_training=6, num_test=2, edge=16)
    api.fingerprint(dataset, workspace=workspace)
    api.plan(dataset, workspace=workspace)
    for configuration in ("2d", "3d_fullres"):
        for fold in (0, 2):
            options = {"settings": {**SHORT, "batch_size": 2}, "device": "cpu"}
            api.train(dataset, workspace=workspace, configuration=configuration, fold=fold, **options)
    return work


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "work"))


def test_select_delete_predict(work: Path, tmp_path: Path) -> None:
    results = work / "results" / "Dataset007_Tiny"
    done = call("--work", work, "select", 7, "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    assert "3 held-out cases of folds 0, 2" in done.stdout
    assert f"ensemble___{MODELS[0]}___{MODELS[1]}___0_2" in done.stdout
    document = json.loads((results / "model" / "selection.json").read_text())
    found = document["selection"]
    assert [each["members"] for each in found["candidates"]] == [[MODELS[0]], [MODELS[1]], [*MODELS]]
    dice = [each["dice"] for each in found["candidates"]]
    assert next(each["dice"] for each in found["candidates"] if each["name"] == found["winner"]) == max(dice)
    assert found["margin"] == pytest.approx(sorted(dice)[-1] - sorted(dice)[-2])
    for name, value in zip(MODELS, dice, strict=False):
        folds = [json.loads((results / name / f"fold_{k}/validation/summary.json").read_text()) for k in (0, 2)]
        by_class: dict[str, list[float]] = {}
        for case in (case for fold in folds for case in fold["metric_per_case"]):
            for key, measures in case["metrics"].items():
                by_class.setdefault(key, []).append(measures["Dice"])
        assert value == pytest.approx(np.mean([np.nanmean(values) for values in by_class.values()]))
    assert not [*results.rglob("*.b2nd"), *results.rglob(".probabilities*")]

    before = states(results)
    again = call("--work", work, "select", "7", "--device", "cpu", "--json")
    assert json.loads(again.stdout)["winner"] == found["winner"]
    assert states(results) == before

    images = Path(shutil.copytree(work / "raw" / "Dataset007_Tiny" / "imagesTs", tmp_path / "images"))
    model = Path(shutil.move(results / "model", tmp_path / "model"))
    shutil.rmtree(work)
    predicted = call("predict", "--model", model, "-i", images, "-o", tmp_path / "out", "--device", "cpu")
    assert predicted.exit_code == 0, predicted.stderr
    assert len([*(tmp_path / "out").glob("*.nii.gz")]) == 2
    file = sorted(images.iterdir())[0]
    volume = read_images([file], READER)
    labels = api.load_model(model, device="cpu").predict(volume.array[0], spacing=volume.spacing)
    written = tmp_path / "out" / file.name.replace("_0000", "")
    np.testing.assert_array_equal(read_label(written, READER).array[0], labels)


def test_folds_of_different_networks_are_not_selected(work: Path) -> None:
    results = work / "results" / "Dataset007_Tiny"
    header = results / MODELS[1] / "fold_2" / "checkpoint_final.json"
    document = json.loads(header.read_text())
    document.pop("checksum", None)
    header.write_text(json.dumps({**document, "network": {"reference": "residual-unet", "kwargs": {}}}))
    done = call("--work", work, "select", 7, "--config", "3d_fullres", "--device", "cpu")
    assert done.exit_code == 1
    assert "its folds were trained as different models, the network differs (fold 0:" in done.stderr
    assert not (results / "model").exists()


def run_folds(work: Path, *folds: int) -> SelectionReport:
    options: dict[str, Any] = {"configurations": ["2d"], "device": "cpu", "workers": 1}
    report = api.run(
        work / "raw" / "Dataset007_Tiny", workspace=Workspace.under(work), folds=folds, **options
    ).selection
    assert report is not None
    return report


def folds_of_members(work: Path) -> set[tuple[int | str, ...]]:
    return {member.folds for member in read_selected(work / "results" / "Dataset007_Tiny" / "model").members}


def test_of_two_runs_at_once_the_last_selects_with_the_folds_of_both(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as pool:
        reports = [*pool.map(lambda fold: run_folds(work, fold), (0, 2))]
    assert [report.comparison.folds for report in reports] == [(0, 2), (0, 2)]
    assert sorted(report.is_new for report in reports) == [False, True]
    assert folds_of_members(work) == {(0, 2)}
    shutil.rmtree(work / "results" / "Dataset007_Tiny" / MODELS[0] / "fold_2")
    assert run_folds(work, 0).comparison.folds == (0,)
    assert "the selection that is replaced scored fold 2 too, the new one only 0" in caplog.text


def test_a_run_selects_with_its_own_folds_where_others_have_another_network(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = work / "results" / "Dataset007_Tiny" / MODELS[0] / "fold_2" / "checkpoint_final.json"
    document = json.loads(header.read_text())
    document.pop("checksum", None)
    header.write_text(json.dumps({**document, "network": {"reference": "residual-unet", "kwargs": {}}}))
    assert run_folds(work, 0).comparison.folds == (0,)
    assert "the network differs" in caplog.text
    assert "; only folds of this run are compared: 0" in caplog.text
    assert folds_of_members(work) == {(0,)}


def test_a_selected_model_knows_its_limits(work: Path, tmp_path: Path) -> None:
    raw, results = work / "raw" / "Dataset007_Tiny", work / "results" / "Dataset007_Tiny"
    validation = results / MODELS[1] / "fold_0" / "validation"
    seen = {file.name: file.read_text() for file in (validation / "observed").iterdir()}
    assert {name.removesuffix(".json") for name in seen} == {
        file.name.removesuffix(".nii.gz") for file in validation.glob("*.nii.gz")
    }
    options = ("--config", "3d_fullres", "--device", "cpu")
    done = call("--work", work, "select", 7, *options)
    assert "expected Dice, estimated from predictions: 3 held-out cases" in done.stdout, done.stderr
    assert "(predict --calibrated)" in done.stdout
    written = {name: (results / "model" / name).read_text() for name in ("quality.json", "calibration.json")}
    assert json.loads(written["quality.json"])["cases"] == json.loads(written["calibration.json"])["cases"] == 3

    # A model that was validated before there were observations is observed now, with the same result.
    shutil.rmtree(validation / "observed")
    shutil.rmtree(results / "model")
    assert call("--work", work, "select", 7, *options).exit_code == 0
    assert {file.name: file.read_text() for file in (validation / "observed").iterdir()} == seen
    assert {name: (results / "model" / name).read_text() for name in written} == written

    predict = ("predict", "--model", results / "model", "-i", raw / "imagesTs", "--device", "cpu")
    plain = call(*predict, "-o", tmp_path / "plain", "--probabilities", "npz", "--json")
    cases = json.loads(plain.stdout)
    assert all(0 <= case["expected_dice"] <= 1 and 0 <= case["confidence"] <= 1 for case in cases), plain.stderr
    record = json.loads((tmp_path / "plain" / "prediction.json").read_text())["cases"]
    assert [record[case["case"]]["expected_dice"] for case in cases] == [case["expected_dice"] for case in cases]
    heat = json.loads(written["calibration.json"])["temperature"]
    calibrated = call(*predict, "-o", tmp_path / "calibrated", "--probabilities", "npz", "--calibrated")
    assert calibrated.exit_code == 0, calibrated.stderr
    for file in sorted((tmp_path / "plain").glob("*.npz")):
        before, after = (
            np.load(folder / file.name)["probabilities"] for folder in (file.parent, tmp_path / "calibrated")
        )
        powers = before.astype(np.float64) ** (1 / heat)
        np.testing.assert_allclose(after, powers / powers.sum(axis=0), atol=2e-3)
        name = file.name.replace(".npz", ".nii.gz")
        labels = [read_label(tmp_path / folder / name, READER).array for folder in ("plain", "calibrated")]
        np.testing.assert_array_equal(*labels)
    refused = call("predict", "--model", results / MODELS[1], *predict[3:], "-o", tmp_path / "no", "--calibrated")
    assert (refused.exit_code, "the model has no calibration.json" in refused.stderr) == (1, True)

    page = api.write_report(results, tmp_path / "report.html", workspace=Workspace.under(work), pictures=False)
    text = page.read_text()
    assert "<h3>Reliability</h3>" in text
    assert f"{MODELS[1]} (selected)" in text
    model = Path(shutil.move(results / "model", tmp_path / "model"))
    shutil.rmtree(work)
    alone = api.write_report(model, tmp_path / "alone.html").read_text()
    assert f"{MODELS[1]} (selected)" in alone
    assert "Held-out cases, 3 cases" in alone
    assert 'class="surfaces"' in alone
    shown = {kind: call("show", kind, model, "--json") for kind in ("plan", "fingerprint", "scores")}
    assert all(done.exit_code == 0 for done in shown.values()), shown
    assert [row["name"] for row in json.loads(shown["scores"].stdout)[0]["surfaces"]][:2] == ["organ", "lesion"]


def test_a_pair_is_scored_by_its_mean_probabilities(work: Path) -> None:
    """Out-of-fold probabilities on demand equal those that both models predict from raw images."""
    raw = work / "raw" / "Dataset007_Tiny"
    report = api.select(raw, workspace=Workspace.under(work), device="cpu", output=work / "model")
    folder = work / "results" / raw.name / "ensembles" / f"ensemble___{'___'.join(MODELS)}"
    labels = Labels.from_dataset_json(json.loads((raw / "dataset.json").read_text()))
    assert report.is_new
    for fold in (0, 2):
        models = [api.load_model(work / "results" / raw.name / name, folds=[fold], device="cpu") for name in MODELS]
        for file in sorted((folder / f"fold_{fold}").glob("*.nii.gz")):
            volume = read_images([raw / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz")], READER)
            maps = [model.predict_probabilities(volume.array[0], spacing=volume.spacing) for model in models]
            mean = np.mean([found.probabilities for found in maps], axis=0)
            stored = read_label(file, READER).array[0].astype(np.int64)
            agreement = evaluate_case(labels.decide(mean, logits=False).astype(np.int64), stored, labels)
            assert all(measures.dice > 0.999 or np.isnan(measures.dice) for measures in agreement.values())


def test_only_what_is_missing_is_predicted_again(work: Path) -> None:
    raw, results = work / "raw" / "Dataset007_Tiny", work / "results" / "Dataset007_Tiny"
    options: dict[str, Any] = {"workspace": Workspace.under(work), "device": "cpu"}
    first = api.select(raw, **options)
    folder = results / "ensembles" / f"ensemble___{'___'.join(MODELS)}" / "fold_0"
    lost = min(folder.glob("*.nii.gz"))
    before, content = states(results / "ensembles"), read_label(lost, READER).array
    lost.unlink()
    shutil.rmtree(first.model)
    again = api.select(raw, **options)
    assert (again.is_new, again.comparison) == (True, first.comparison)
    np.testing.assert_array_equal(read_label(lost, READER).array, content)
    changed = {name for name, state in states(results / "ensembles").items() if before.get(name) != state}
    name, case = str(lost.relative_to(results / "ensembles")), lost.name.removesuffix(".nii.gz")
    beside = {str(Path(name).parent / other) for other in ("predictions.json", f"observed/{case}.json")}
    assert {name} <= changed <= {name, *beside}
    missing = min((results / MODELS[0] / "fold_2" / "validation").glob("*.nii.gz"))
    missing.unlink()
    refused = call("--work", work, "select", 7, "-o", work / "other")
    assert f"{missing}: no such file; remove the summary.json beside it" in refused.stderr


def test_what_cannot_be_compared_is_said(work: Path, tmp_path: Path) -> None:
    results = work / "results" / "Dataset007_Tiny"
    only = ("--work", work, "select", 7, "--device", "cpu", "--no-ensembles", "-o", tmp_path / "model")
    single = call(*only, "--configs", "2d", "--folds", "2")
    assert single.exit_code == 0, single.stderr
    assert [*(tmp_path / "model" / "members").iterdir()] == [tmp_path / "model" / "members" / MODELS[0]]
    assert [path.name for path in (tmp_path / "model" / "members" / MODELS[0]).glob("fold_*")] == ["fold_2"]
    assert "ensemble" not in single.stdout
    for arguments, message in (
        (("--folds", "1"), "fold 1 is not trained and validated; those that are: 0, 2"),
        (("--config", "3d_fulres"), "did you mean '3d_fullres'?"),
        (("--plans", "Other"), "nothing to select from"),
    ):
        refused = call(*only, *arguments)
        assert (refused.exit_code, message in refused.stderr) == (1, True), refused.stderr
    foreign = results / "nnUNetTrainer__nnUNetPlans__2d"
    shutil.copytree(results / MODELS[0], foreign)
    for file in foreign.rglob("checkpoint_*"):
        file.unlink()
    shutil.rmtree(results / MODELS[0] / "fold_2")
    fewer = call(*only)
    assert "held-out cases of fold 0" in fewer.stdout
    assert f"{MODELS[1]} has fold 2 too" in fewer.stderr
    assert f"{foreign.name} is left out" in fewer.stderr
    shutil.rmtree(results / MODELS[1] / "fold_0")
    none = call(*only)
    assert "the models have no common fold with predicted held-out cases" in none.stderr


def test_labels_that_changed_since_are_refused(work: Path) -> None:
    file = work / "raw" / "Dataset007_Tiny" / "dataset.json"
    document = json.loads(file.read_text())
    document["labels"] = {"background": 0, "organ": [1, 2], "lesion": 2}
    file.write_text(json.dumps(document | {"regions_class_order": [1, 2]}))
    refused = call("--work", work, "select", 7, "--device", "cpu")
    assert (refused.exit_code, "was trained on other labels" in refused.stderr) == (1, True), refused.stderr


def test_a_run_compares_what_earlier_ones_trained_but_keeps_what_was_asked_for(work: Path) -> None:
    raw = work / "raw" / "Dataset007_Tiny"
    options: dict[str, Any] = {"workspace": Workspace.under(work), "device": "cpu"}
    run = api.run(raw, configurations=["2d"], folds=[0, 2], settings=SHORT, **options)
    assert run.selection is not None
    assert [each.members for each in run.selection.comparison.candidates] == [(MODELS[0],), (MODELS[1],), MODELS]
    assert "select" in run.executed_stages
    assert not [each for each in run.executed_stages if each.startswith("train")]
    asked = api.select(raw, configurations=["2d"], **options)
    assert (asked.is_new, asked.comparison.winner) == (True, MODELS[0])
    again = api.run(raw, configurations=["3d_fullres"], folds=[0, 2], settings=SHORT, **options)
    assert again.selection is not None
    assert (again.selection.is_new, again.selection.comparison) == (False, asked.comparison)


def test_models_of_other_splits_are_refused(work: Path) -> None:
    summary = work / "results" / "Dataset007_Tiny" / MODELS[0] / "fold_0" / "validation" / "summary.json"
    document = json.loads(summary.read_text())
    document["metric_per_case"] = document["metric_per_case"][:1]
    del document["checksum"]
    summary.write_text(json.dumps(document))
    refused = call("--work", work, "select", 7, "--device", "cpu")
    assert (refused.exit_code, "fold 0 holds out other cases than that of" in refused.stderr) == (1, True)


def test_a_held_out_case_that_left_the_dataset_is_named(work: Path) -> None:
    raw = work / "raw" / "Dataset007_Tiny"
    validation = work / "results" / raw.name / MODELS[0] / "fold_2" / "validation"
    [case] = [file.name.removesuffix(".nii.gz") for file in validation.glob("*.nii.gz")]
    for file in (raw / "labelsTr" / f"{case}.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz"):
        file.unlink()
    document = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(document | {"numTraining": document["numTraining"] - 1}))
    refused = call("--work", work, "select", 7, "--device", "cpu", "--no-ensembles")
    assert refused.exit_code == 1
    assert f"case {case}: was held out but has no label in the dataset; put it back" in refused.stderr
