"""A whole run on a tiny phantom: its files, a second run, a killed run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journeys import RUN, Journey, call, small_work, states

PROGRAM = Path(sys.executable).with_name("segwright")


@pytest.mark.smoke
def test_the_journey_ends_with_a_table(journey: Journey) -> None:
    assert journey.result.exit_code == 0, journey.result.stderr
    assert "3d_fullres fold 0" in journey.result.stdout
    assert str(journey.model) in journey.result.stdout
    selected = journey.model.with_name("model")
    how = f"predict with: segwright predict --model {selected} -i IMAGES -o OUT"
    assert how in journey.result.stdout or "this model is not usable" in journey.result.stdout  # as fast as the machine
    assert (selected / "members" / journey.model.name / "fold_0" / "checkpoint_final.safetensors").is_file()


@pytest.mark.smoke
def test_files_land_where_nnunet_users_look(journey: Journey) -> None:
    expected = {
        journey.preprocessed: ["dataset_fingerprint.json", "nnUNetPlans.json", "splits_final.json", "dataset.json"],
        journey.model: ["plans.json", "dataset.json", "dataset_fingerprint.json"],
        journey.model / "fold_0": [
            "train.json",
            "metrics.jsonl",
            "training.log",
            "progress.png",
            "checkpoint_final.safetensors",
            "checkpoint_final.json",
            "validation/summary.json",
        ],
    }
    missing = [folder / name for folder, names in expected.items() for name in names if not (folder / name).is_file()]
    assert not missing
    assert (journey.preprocessed / "dataset.json").read_bytes() == (journey.dataset / "dataset.json").read_bytes()


@pytest.mark.smoke
def test_no_process_is_started_and_the_dataset_is_left_alone(journey: Journey) -> None:
    assert journey.children == ()
    assert states(journey.dataset) == journey.raw_before


def test_a_second_run_does_nothing_and_is_quick(journey: Journey) -> None:
    before = states(journey.work)
    start = time.monotonic()
    done = subprocess.run(
        [PROGRAM, "run", journey.dataset, *RUN[:-2], "--work", journey.work], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - start < 5
    assert "nothing to do" in done.stdout
    assert states(journey.work) == before


def test_a_finished_run_needs_no_torch(journey: Journey) -> None:
    program = (
        "import sys; from pathlib import Path; import segwright; from segwright.workspace import Workspace\n"
        f"report = segwright.run({str(journey.dataset)!r}, workspace=Workspace.under(Path({str(journey.work)!r})))\n"
        "sys.exit('torch' in sys.modules or bool(report.executed_stages))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_killed_again_and_again_it_finishes_with_the_missing_work_alone(tiny: Path, tmp_path: Path) -> None:
    preprocessed = tmp_path / "preprocessed" / tiny.name
    cases = preprocessed / "segwright_nnUNetPlans_3d_fullres"
    fold = tmp_path / "results" / tiny.name / "Trainer__nnUNetPlans__3d_fullres" / "fold_0"
    for there in (
        lambda: (preprocessed / "dataset_fingerprint.json").is_file(),
        lambda: any(cases.glob("[!.]*.json")),
        lambda: (fold / "metrics.jsonl").is_file(),
    ):
        _kill_when(there, tiny, tmp_path)
        for document in tmp_path.rglob("[!.]*.json"):
            json.loads(document.read_text(encoding="utf-8"))
    before = states(preprocessed)
    done = call("run", tiny, *RUN, "--work", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "nothing to do" not in done.stdout
    assert {name: state for name, state in states(preprocessed).items() if name in before} == before
    again = call("run", tiny, *RUN, "--work", tmp_path)
    assert "nothing to do" in again.stdout


def _kill_when(condition: object, dataset: Path, work: Path) -> None:
    """Start a run and kill it without warning as soon as `condition` holds."""
    assert callable(condition)
    with subprocess.Popen(
        [PROGRAM, "run", dataset, *RUN, "--work", work], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not condition():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_run_says_in_its_last_line_what_finished_folds_were_not_trained_with(journey: Journey) -> None:
    done = call("run", journey.dataset, *RUN, "--network", "residual-unet", "--work", journey.work)
    assert done.exit_code == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert (
        "not done: 3d_fullres fold 0 was trained with network = that of the plan, not network = residual-unet" in last
    )
    assert f"to train again delete {journey.model / 'fold_0'}; to keep both, train the second model with --name" in last


def test_validation_alone_is_done_again(journey: Journey, tmp_path: Path) -> None:
    summary = journey.model / "fold_0" / "validation" / "summary.json"
    scores = json.loads(summary.read_text(encoding="utf-8"))
    weights = states(journey.model / "fold_0")["checkpoint_final.safetensors"]
    summary.unlink()
    done = call("run", journey.dataset, *RUN, "--work", journey.work)
    assert done.exit_code == 0, done.stderr
    assert json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"] == scores["foreground_mean"]
    assert states(journey.model / "fold_0")["checkpoint_final.safetensors"] == weights


def test_an_edited_plan_is_kept_and_said(journey: Journey, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert call("plan", journey.dataset, "--work", work).exit_code == 0
    file = work / "preprocessed" / journey.dataset.name / "nnUNetPlans.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["configurations"]["3d_fullres"]["batch_size"] = 3
    file.write_text(json.dumps(document), encoding="utf-8")
    kept = call("plan", journey.dataset, "--work", work)
    assert "edited by hand and is kept" in kept.stderr
    assert json.loads(file.read_text(encoding="utf-8")) == document
    call("plan", journey.dataset, "--work", work, "--force")
    remade = json.loads(file.read_text(encoding="utf-8"))
    assert remade["configurations"]["3d_fullres"]["batch_size"] == 2


def test_plans_of_another_name_are_trained_with(journey: Journey, tmp_path: Path) -> None:
    work = small_work(journey, tmp_path / "work")
    plans = work / "preprocessed" / journey.dataset.name / "nnUNetPlans.json"
    document = json.loads(plans.read_text(encoding="utf-8"))
    plans.with_name("mine.json").write_text(json.dumps({**document, "plans_name": "mine"}), encoding="utf-8")
    done = call(
        "run", journey.dataset, *RUN[:-4], "--budget", "1s", "--device", "cpu", "--plans", "mine", "--work", work
    )
    assert done.exit_code == 0, done.stderr
    model = work / "results" / journey.dataset.name / "Trainer__mine__3d_fullres"
    assert (model / "fold_0" / "checkpoint_final.safetensors").is_file()


@pytest.mark.parametrize("word", ["7", "Dataset007_Tiny"])
def test_a_dataset_is_found_by_id_and_name(
    journey: Journey, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(journey.dataset.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "mine"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert call("fingerprint", word).exit_code == 0
    assert (tmp_path / "mine" / "Dataset007_Tiny" / "dataset_fingerprint.json").is_file()
