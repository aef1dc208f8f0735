"""Options, warnings and errors of `evaluate`, `compare` and the verbs on folders of predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from journeys import Journey, call

from segwright.api.evaluating import find_label_reader

DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "a": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def write(file: Path, label_map: np.ndarray, *, spacing: float = 1.0, origin: float = 0.0) -> None:
    image = sitk.GetImageFromArray(label_map.astype(np.uint8))
    image.SetSpacing((spacing,) * 3)
    image.SetOrigin((origin,) * 3)
    sitk.WriteImage(image, str(file))


def turn_in_storage(file: Path) -> None:
    """Rewrite an image with permuted axes, one of them flipped, and the same geometry."""
    image = sitk.PermuteAxes(sitk.ReadImage(str(file)), (2, 0, 1))
    sitk.WriteImage(sitk.Flip(image, (True, False, False)), str(file))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three references; the last has no prediction."""
    truth, model = tmp_path / "truth", tmp_path / "model"
    predicted = model / "fold_0" / "validation"
    truth.mkdir()
    predicted.mkdir(parents=True)
    (model / "dataset.json").write_text(json.dumps(DATASET))
    label_map = np.zeros((4, 6, 8))
    label_map[1:3, 1:4, 2:5] = 1
    label_map[:, :, 7] = 255  # nobody has annotated
    for name in "abc":
        write(truth / f"{name}.nii.gz", label_map)
        if name != "c":
            write(predicted / f"{name}.nii.gz", np.where(label_map == 255, 1, label_map))
    return truth, predicted


def test_a_fold_finds_the_dataset_json_of_its_model_and_the_rule_is_told(folders: tuple[Path, Path]) -> None:
    done = call("evaluate", *folders)
    assert done.exit_code == 0, done.stderr
    assert "absent in reference and prediction: left out; in one of them: Dice, IoU 0\n" in done.stdout


def test_voxels_of_another_ignore_label_do_not_count(folders: tuple[Path, Path]) -> None:
    assert json.loads(call("evaluate", *folders, "--json").stdout)["mean"]["a"]["Dice"] < 1
    for more in ((), ("--labels", "1")):
        done = call("evaluate", *folders, "--ignore-label", 255, "--json", *more)
        assert [item["Dice"] for item in json.loads(done.stdout)["mean"].values()] == [1, 1]
    both = call("evaluate", *folders, "--labels", "1,2", "--ignore-label", 2)
    assert (both.exit_code, "label 2 cannot be both scored and ignored" in both.stderr) == (1, True)


def test_a_missing_prediction_is_an_error_on_request(folders: tuple[Path, Path]) -> None:
    done = call("evaluate", *folders, "--require-all")
    assert (done.exit_code, "c.nii.gz: reference without a prediction" in done.stderr) == (1, True)


def test_tolerances_are_those_that_are_asked_for(folders: tuple[Path, Path]) -> None:
    done = call("evaluate", *folders, "--tolerance", "0.5,3", "--json")
    measured = json.loads(done.stdout)["mean"]["a"]
    assert {name for name in measured if name.startswith("NSD")} == {"NSD_0.5mm", "NSD_3mm"}
    assert "one of them: Dice, IoU, NSD_3mm 0; distances" in call("evaluate", *folders, "--tolerance", 3).stdout
    wrong = call("evaluate", *folders, "--tolerance", "0")
    assert (wrong.exit_code, "expected mm above 0" in wrong.stderr) == (1, True)
    word = call("evaluate", *folders, "--tolerance", "near")
    assert (word.exit_code != 0, "--tolerance" in word.stderr) == (True, True)


def test_odd_predictions_are_told_once(folders: tuple[Path, Path]) -> None:
    for name in "ab":
        write(folders[1] / f"{name}.nii.gz", np.full((4, 6, 8), 7 if name == "b" else 1))
        turn_in_storage(folders[1] / f"{name}.nii.gz")
    done = call("evaluate", *folders)
    assert done.exit_code == 0
    told = " ".join(done.stderr.split())
    assert told.count("1 of 2 predictions hold values that are no labels of the dataset (7), first b.nii.gz") == 1
    assert told.count("2 of 2 predictions are stored along other axes than their reference, first a.nii.gz") == 1
    named = call("evaluate", *folders, "--labels", "1")
    assert "no labels of the dataset" not in " ".join(named.stderr.split())
    others = call("evaluate", *folders, "--labels", "4,5")
    assert "no prediction holds any of the labels that are scored (4, 5), but others: 1, 7" in " ".join(
        others.stderr.split()
    )


def test_predictions_stored_along_other_axes_score_the_same(folders: tuple[Path, Path]) -> None:
    before = json.loads(call("evaluate", *folders, "--surface", "--json").stdout)["mean"]
    for file in folders[1].glob("*.nii.gz"):
        turn_in_storage(file)
    assert json.loads(call("evaluate", *folders, "--surface", "--json").stdout)["mean"] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": 2.0}, "spacing (2, 2, 2) differs from (1, 1, 1) of its reference"),
        (
            {"origin": 50.0},
            "origin differs from that of its reference, voxels of the same index are up to 86.6 mm apart",
        ),
    ],
)
def test_predictions_of_other_places_are_refused(
    folders: tuple[Path, Path], change: dict[str, float], message: str
) -> None:
    write(folders[1] / "a.nii.gz", np.ones((4, 6, 8)), **change)
    done = call("evaluate", *folders)
    assert (done.exit_code, message in " ".join(done.stderr.split())) == (1, True), done.stderr


@pytest.mark.parametrize("verb", ["evaluate", "determine-postprocessing", "ensemble"])
def test_a_missing_folder_is_named(folders: tuple[Path, Path], verb: str) -> None:
    more = ("-o", folders[0].parent / "out") if verb == "ensemble" else ()
    for pair in (("gone", folders[1]), (folders[1], "gone")):
        done = call(verb, *pair, *more)
        assert (done.exit_code, "gone: no such folder" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "b": 1}}, 'labels [["b", 1]], but [["a", 1]] in'),
        ({"channel_names": {"0": "MR"}}, 'channels ["MR"], but ["CT"] in'),
        ({"file_ending": ".mha"}, 'file_ending ".mha", but ".nii.gz" in'),
    ],
)
def test_folders_of_different_tasks_are_not_averaged(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    for folder, document in zip(folders, (DATASET, DATASET | change), strict=True):
        (folder / "dataset.json").write_text(json.dumps(document))
    done = call("ensemble", *folders, "-o", tmp_path / "out")
    text = " ".join(done.stderr.split())
    assert (done.exit_code, message in text) == (1, True), text
    assert "an ensemble needs models of the same task" in text


def test_a_model_is_not_compared_with_itself(folders: tuple[Path, Path]) -> None:
    call("evaluate", *folders)
    done = call("compare", folders[1], folders[1] / "summary.json")
    assert (done.exit_code, "summary.json is given twice" in done.stderr) == (1, True)


def test_verbs_that_write_folders_print_json(journey: Journey, tmp_path: Path) -> None:
    moved = call("--work", tmp_path / "work", "move-plans", journey.model, journey.dataset, "--name", "moved", "--json")
    assert Path(json.loads(moved.stdout)["plans"]).is_file()
    assert json.loads(moved.stdout)["name"] == "moved"
    exported = call("export-model", journey.model, tmp_path / "theirs", "--json")
    assert json.loads(exported.stdout) == {"model": str(tmp_path / "theirs")}
    imported = call("import-model", tmp_path / "theirs", tmp_path / "ours", "--json")
    assert json.loads(imported.stdout) == {"models": [str(tmp_path / "ours")]}


def write_stacks(folder: Path, num_cases: int = 6) -> Path:
    """Write a dataset of TIFF stacks of 4 planes, with spacings in JSON files."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(num_cases):
        label_map = np.zeros((4, 9, 8), np.uint8)
        label_map[1:3, 2:6, 2:5] = 1
        label_map[0, 0, 7] = 1
        image = np.random.RandomState(index).randint(0, 99, label_map.shape).astype(np.uint8)
        for array, file in ((image, f"imagesTr/c{index}_0000.tif"), (label_map, f"labelsTr/c{index}.tif")):
            tifffile.imwrite(folder / file, array, photometric="minisblack")
            (folder / file).with_name(f"c{index}.json").write_text('{"spacing": [2.0, 0.5, 0.5]}')
    (folder / "dataset.json").write_text(json.dumps({**DATASET, "numTraining": num_cases, "file_ending": ".tif"}))
    return folder


def test_verbs_read_stacks_in_tiff_files(tmp_path: Path) -> None:
    dataset, work = write_stacks(tmp_path / "Dataset009_Stacks"), tmp_path / "work"
    predictions, labels = tmp_path / "predictions", dataset / "labelsTr"
    shutil.copytree(labels, predictions)
    document = ("--dataset-json", dataset / "dataset.json")

    for arguments in (
        ("evaluate", labels, predictions, *document, "--surface"),
        ("evaluate", labels, predictions, "--labels", "1"),
        ("determine-postprocessing", labels, predictions, *document),
        ("apply-postprocessing", "-i", predictions, "-o", tmp_path / "out", *document),
        ("evaluate", labels, tmp_path / "out", *document),
        ("--work", work, "plan", dataset),
    ):
        done = call(*arguments)
        assert done.exit_code == 0, done.stderr
    measured = work / "preprocessed" / dataset.name / "dataset_fingerprint.json"
    done = call("plan", "--from-fingerprint", measured, *document, "-o", tmp_path / "plans.json", "--json")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "c0.json").is_file()
    for made in (json.loads(done.stdout), json.loads((measured.parent / "nnUNetPlans.json").read_text())):
        assert made["configurations"]
        assert made["image_reader_writer"] == "Tiff3DIO"


def test_reader_of_the_plans_above_predictions_is_taken(tmp_path: Path) -> None:
    dataset = write_stacks(tmp_path / "Dataset009_Stacks")
    call("--work", tmp_path / "work", "plan", dataset)
    plans = next((tmp_path / "work" / "preprocessed" / dataset.name).glob("nnUNetPlans.json"))
    model, override = tmp_path / "model", {**DATASET, "file_ending": ".tif"}
    validation = model / "fold_0" / "validation"
    shutil.copytree(dataset / "labelsTr", validation)
    for file in validation.glob("*.json"):
        file.unlink()  # planes of 4 colours, as far as the files tell
    shutil.copyfile(plans, model / "plans.json")
    (model / "dataset.json").write_text(json.dumps(override))

    assert find_label_reader(".tif", None, dataset / "labelsTr", validation) == "Tiff3DIO"
    assert find_label_reader(".tif", None, validation) == "Tiff3DIO"
    (model / "plans.json").unlink()
    assert find_label_reader(".tif", None, validation) == "NaturalImage2DIO"
