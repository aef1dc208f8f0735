"""The same words in every verb: a dataset by id or name after a run by path, and a stage's options in `run`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from journeys import Journey, call

import segwright
from segwright import api
from segwright.core.errors import ModelError
from segwright.workspace import Workspace

OPTIONS = ("--config", "3d_fullres", "--folds", "0", "--epochs", "1", "--iterations", "2", "--batch-size", "3")
OPTIONS += ("--seed", "7", "--gpu-memory", "3", "--plans", "mine", "--set", "num_val_iterations_per_epoch=1")


@pytest.mark.parametrize("word", ["7", "Tiny"])
def test_a_dataset_that_was_run_by_path_is_found_in_every_verb(journey: Journey, tmp_path: Path, word: str) -> None:
    work, plans = ("--work", journey.work), tmp_path / "plans.json"
    before = journey.dataset / "dataset.json"
    for verb in (
        ("run", word, "--config", "3d_fullres"),
        ("check", word),
        ("fingerprint", word),
        ("plan", word, "-o", plans),
        ("preprocess", word, "--config", "3d_fullres"),
        ("compare", "Trainer", journey.model.name, "--dataset", word),
        ("report", word, "-o", tmp_path / "report.html"),
        ("show", "plan", word),
        ("show", "fingerprint", word),
        ("show", "scores", word),
        ("predict", "-m", word, "-i", journey.dataset / "imagesTs", "-o", tmp_path / "labels", "--device", "cpu"),
        ("status", word),
        ("status",),
    ):
        done = call(*verb, *work)
        if verb[0] == "compare":
            assert "is given twice" in done.stderr  # the only model, under both of its names
            continue
        assert done.exit_code == 0, done.stderr
        if verb[0] == "run":
            assert "nothing to do" in done.stdout
        if verb[0] == "status":
            assert "Dataset007_Tiny" in done.stdout
    workspace = Workspace.under(journey.work)
    assert len(api.fingerprint(word, workspace=workspace).spacings) == 6
    assert [each.dataset for each in api.status(word, workspace=workspace)] == ["Dataset007_Tiny"]
    with pytest.raises(ModelError, match="has a training already"):
        segwright.Trainer.for_dataset(word, "3d_fullres", workspace=workspace, device="cpu")
    assert before.is_file()


def test_status_counts_all_steps_of_a_finished_fold(journey: Journey) -> None:
    [found] = json.loads(call("status", journey.model, "--json").stdout)
    shown = call("status", journey.model, "--work", journey.work).stdout
    assert (found["state"], found["dataset"]) == ("finished", "Dataset007_Tiny")
    assert f"all {found['step']}" in " ".join(shown.split())


def test_changed_and_moved_data_are_told_and_taken_by_their_path(tiny: Path, tmp_path: Path) -> None:
    raw, work = Path(shutil.copytree(tiny, tmp_path / "archive" / tiny.name)), ("--work", tmp_path / "work")
    assert call("fingerprint", raw, *work).exit_code == 0
    assert call("fingerprint", "7", *work).exit_code == 0
    document = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**document, "description": "corrected"}))
    refused = call("fingerprint", "Tiny", *work)
    assert refused.exit_code == 1
    assert f"to use it as it is now, give the path {raw}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert call("fingerprint", raw, *work).exit_code == 0
    assert call("fingerprint", "Tiny", *work).exit_code == 0
    moved = raw.rename(tmp_path / raw.name)
    refused = call("fingerprint", "Tiny", *work)
    assert (refused.exit_code, "if it was moved, give the path" in refused.stderr) == (1, True)
    assert call("fingerprint", moved, *work).exit_code == 0
    assert call("fingerprint", "Tiny", *work).exit_code == 0


def test_several_datasets_are_planned_in_one_call(tiny: Path, tmp_path: Path) -> None:
    other, work = Path(shutil.copytree(tiny, tmp_path / "Dataset008_Other")), ("--work", tmp_path / "work")
    unknown = call("plan", tiny, "none", *work)
    assert (unknown.exit_code, "dataset 'none'" in unknown.stderr) == (1, True)
    assert not (tmp_path / "work").exists()
    planned = call("plan", tiny, other, *work, "--json")
    assert {name: each["dataset_name"] for name, each in json.loads(planned.stdout).items()} == {
        name: name for name in (tiny.name, other.name)
    }
    assert "is one file for 2 datasets" in call("plan", "7", "8", "-o", tmp_path / "plans.json", *work).stderr
    preprocessed = call("preprocess", "7", "Other", "--config", "3d_fullres", *work)
    assert preprocessed.stdout.splitlines() == [
        f"{name}, 3d_fullres: 6 cases preprocessed, 0 kept" for name in (tiny.name, other.name)
    ]


@pytest.mark.slow
def test_a_run_on_two_processes_takes_the_options_of_its_stages(tiny: Path, tmp_path: Path) -> None:
    command = ("-m", "segwright", "--work", tmp_path, "run", tiny, *OPTIONS, "--gpus", "2", "--device", "cpu")
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    fold = tmp_path / "results" / tiny.name / "Trainer__mine__3d_fullres" / "fold_0"
    config = json.loads((fold / "train.json").read_text())["config"]
    wanted = {"num_epochs": 1, "num_iterations_per_epoch": 2, "batch_size": 3, "seed": 7}
    assert {key: config[key] for key in wanted} == wanted
    plan = json.loads((tmp_path / "preprocessed" / tiny.name / "mine.json").read_text())
    assert plan["segwright"]["options"]["gpu_memory_gb"] == 3
    again = call("run", "7", *OPTIONS, "--device", "cpu", "--work", tmp_path)
    assert "nothing to do" in again.stdout, again.stderr
    best = call(
        *("train", "7", "--config", "3d_fullres", "--fold", "0", "--plans", "mine", "--validate", "best"),
        *("--device", "cpu", "--work", tmp_path),
    )
    assert best.exit_code == 0, best.stderr
    assert "Dice of checkpoint_best" in best.stdout
    assert (fold / "validation_best" / "summary.json").is_file()
