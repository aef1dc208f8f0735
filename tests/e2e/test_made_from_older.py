"""Outdated results are reported: new cases, corrected labels, other splits."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813
from journeys import Journey, call

from segwright.core.files.locks import locked
from segwright.core.interrupt import EXIT_RESUMABLE
from segwright.workspace import Workspace

FAST = ("--epochs", "1", "--set", "num_iterations_per_epoch=1", "--set", "num_val_iterations_per_epoch=1", "--device",
        "cpu")  # fmt: skip
NAME = "Dataset007_Tiny"


@pytest.fixture
def raw(journey: Journey, tmp_path: Path) -> Path:
    """A copy of the dataset for tests to change."""
    return Path(shutil.copytree(journey.dataset, tmp_path / NAME))


@pytest.fixture
def work(journey: Journey, tmp_path: Path) -> Path:
    return Path(shutil.copytree(journey.work, tmp_path / "work"))


@pytest.fixture
def fold(work: Path) -> Path:
    return work / "results" / NAME / "Trainer__nnUNetPlans__3d_fullres" / "fold_0"


def held_out(fold: Path) -> str:
    return str(json.loads((fold / "training_data.json").read_text())["val"][0])


def shrink_label(raw: Path, case: str) -> None:
    file = raw / "labelsTr" / f"{case}.nii.gz"
    label = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(label)
    array[: array.shape[0] // 2] = 0
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(label)
    sitk.WriteImage(changed, str(file))


def run(work: Path, raw: Path, *more: str) -> dict[str, object]:
    done = call(
        "--work", work, "run", raw, "--json", "--folds", "0", "--config", "3d_fullres", "--device", "cpu", *more
    )
    assert done.exit_code == 0, done.output
    return {**json.loads(done.stdout), "stderr": done.stderr}


def test_labels_corrected_after_training_are_named_and_the_scores_are_of_the_new_ones(
    raw: Path, work: Path, fold: Path
) -> None:
    case = held_out(fold)
    shrink_label(raw, case)
    report = run(work, raw)
    assert f"labels of 1 case changed since {fold} was trained: {case}" in str(report["stderr"])
    assert f"remove {fold} to train it again" in str(report["stderr"])
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    selected = json.loads((work / "results" / NAME / "model" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == pytest.approx(selected["foreground_mean"]["Dice"])
    assert summary["metric_per_case"][0]["reference_file"].startswith(str(raw))

    again = run(work, raw)
    assert "labels of 1 case changed" in str(again["stderr"])
    assert again["done"] == []

    assert "labels of 1 case changed" in call("--work", work, "select", raw).stderr
    assert "labels of 1 case changed since fold_0 was trained" in call("status", work).stdout


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("labels", {"background": 0, "organ": 2, "lesion": 1}, "lesion 2, now background 0, lesion 1, organ 2"),
        ("channel_names", {"0": "CT"}, "channels MRI, now CT"),
    ],
)
def test_a_selection_is_not_made_for_labels_of_other_names(
    raw: Path, work: Path, key: str, value: dict[str, object], word: str
) -> None:
    document = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**document, key: value}))
    done = call("--work", work, "select", raw)
    assert done.exit_code == 1, done.output
    assert "was trained on other labels or channels than" in done.stderr
    assert word in done.stderr
    assert "restore dataset.json" in done.stderr


def test_a_dataset_that_moved_is_the_one_that_was_trained_on(raw: Path, work: Path, fold: Path) -> None:
    report = run(work, raw)
    assert "was trained" not in str(report["stderr"])
    assert json.loads((fold / "training_data.json").read_text())["dataset"] == str(raw)


def add_case(raw: Path, like: str, name: str) -> None:
    shutil.copy(raw / "imagesTr" / f"{like}_0000.nii.gz", raw / "imagesTr" / f"{name}_0000.nii.gz")
    shutil.copy(raw / "labelsTr" / f"{like}.nii.gz", raw / "labelsTr" / f"{name}.nii.gz")
    document = json.loads((raw / "dataset.json").read_text())
    document["numTraining"] += 1
    (raw / "dataset.json").write_text(json.dumps(document))


def test_new_cases_in_no_fold_are_named_with_the_way_to_use_them(raw: Path, work: Path, fold: Path) -> None:
    add_case(raw, held_out(fold), "new")
    report = run(work, raw)
    splits = work / "preprocessed" / NAME / "splits_final.json"
    assert f"1 case of {NAME} is in no fold of {splits}" in str(report["stderr"])
    assert "trains on or validates with it: new; delete the file" in str(report["stderr"])

    splits.unlink()
    again = run(work, raw)
    assert "was trained with other cases than its split lists now" in str(again["stderr"])


def test_new_cases_enter_the_folds_as_long_as_none_is_trained(raw: Path, work: Path, fold: Path) -> None:
    add_case(raw, held_out(fold), "new")
    shutil.rmtree(work / "results" / NAME)
    done = call("--work", work, "train", raw, "--config", "3d_fullres", "--fold", "1", *FAST)
    assert done.exit_code == 0, done.output
    assert "no fold was trained yet, so new folds are made" in done.stderr
    data = json.loads((fold.parent / "fold_1" / "training_data.json").read_text())
    assert "new" in data["train"] + data["val"]


def test_a_training_does_not_go_on_with_other_cases(raw: Path, work: Path, fold: Path) -> None:
    shutil.rmtree(fold / "validation")
    splits = work / "preprocessed" / NAME / "splits_final.json"
    folds = json.loads(splits.read_text())
    splits.write_text(json.dumps(folds[::-1]))
    done = call("--work", work, "train", raw, "--config", "3d_fullres", "--fold", "0", "--resume", "--device", "cpu")
    assert done.exit_code == 1
    assert "was started with other cases than splits_final.json lists now" in done.stderr


def test_a_label_changed_into_something_undeclared_is_refused_by_preprocess_and_train(raw: Path, work: Path) -> None:
    file = raw / "labelsTr" / sorted(path.name for path in (raw / "labelsTr").iterdir())[0]
    label = sitk.ReadImage(str(file))
    sitk.WriteImage(label * 7, str(file))
    for verb in (("preprocess",), ("train", "--fold", "1", *FAST)):
        done = call("--work", work, verb[0], raw, "--config", "3d_fullres", *verb[1:])
        assert done.exit_code == 1
        assert file.name in done.stderr
        assert "unexpected label value" in done.stderr


def test_another_dataset_of_the_same_name_is_refused_by_name(raw: Path, work: Path, journey: Journey) -> None:
    for file in (raw / "imagesTr").iterdir():
        image = sitk.ReadImage(str(file))
        sitk.WriteImage(image + 1, str(file))
    for verb in (
        ("run",),
        ("fingerprint",),
        ("preprocess", "--config", "3d_fullres"),
        ("train", "--config", "3d_fullres", "--fold", "1"),
    ):
        done = call("--work", work, verb[0], raw, *verb[1:])
        assert done.exit_code == 1
        assert f"was made from {journey.dataset.resolve()}, not from {raw} of the same name" in done.stderr
        assert "choose another work folder with --work, rename one of the two" in done.stderr


def test_two_runs_at_once_give_one_model_and_say_who_waits(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segwright", "--work", str(tmp_path / "work"), "run", str(tiny), "--json", *FAST]
    processes = [
        subprocess.Popen([*command, "--folds", folds], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for folds in ("0", "0,1")
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    reports = [json.loads(stdout) for stdout, _ in ended]
    assert reports[0]["folds"] == reports[1]["folds"][:1]
    stages = ["fingerprint", "plan", "preprocess 3d_fullres", *(f"train 3d_fullres fold {fold}" for fold in (0, 1))]
    assert sorted(reports[0]["done"] + reports[1]["done"]) == [*stages[:3], "select", "select", *stages[3:]]
    waits = [stderr.count("; waiting") for _, stderr in ended]
    assert sum(waits) >= 1
    log = Path(reports[0]["folds"][0]["folder"]) / "training.log"
    assert log.read_text().count("training done") == 1
    assert not list((tmp_path / "work").rglob("*.lock"))


def test_two_folds_are_trained_at_the_same_time(journey: Journey, work: Path, fold: Path) -> None:
    """A fold that another process trains is waited for or refused; other folds are not."""
    with locked(Workspace.lock_beside(fold.parent / "fold_1"), "training"):
        command = ("--work", work, "train", journey.dataset, "--config", "3d_fullres", *FAST, "--fold")
        done = call(*command, "2")
        assert done.exit_code == 0, done.output
        said = done.stderr.replace("\n", " ")
        assert f"{fold.parent.parent / 'model'} is older than {fold.parent.name}/fold_2; 'segwright select" in said
        assert f"'segwright report {fold.parent.parent}' updates it" in said
        assert "is older than" in call("status", work).stdout
        (fold.parent / "fold_1").mkdir()
        (fold.parent / "fold_1" / "checkpoint_latest.safetensors").touch()
        refused = call(*command, "1", "--no-wait")
        assert refused.exit_code == EXIT_RESUMABLE
        assert re.search(rf"error: training is under way on \S+, pid {os.getpid()}, since", refused.stderr)
        assert f"training is under way on {platform.node()}, pid {os.getpid()}" in call("status", work).stdout
        assert call("status", fold).exit_code == 0
        assert call("report", fold.parent, "-o", work / "page.html").exit_code == 0
