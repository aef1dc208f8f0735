"""`--json`, `show` and `report` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from journeys import RUN, Journey, call


def json_of(*arguments: object) -> Any:
    done = call(*arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_run_ends_with_a_report_and_prints_its_path(journey: Journey) -> None:
    page = journey.model.parent / "report.html"
    assert f"report: {page}" in journey.result.stdout
    summary = json.loads((journey.model / "fold_0" / "validation" / "summary.json").read_text())
    assert f'<data value="{summary["foreground_mean_present"]["Dice"]}">' in page.read_text(encoding="utf-8")


def test_every_verb_that_prints_results_prints_json(journey: Journey, tmp_path: Path) -> None:
    work, dataset, model = ("--work", journey.work), journey.dataset, journey.model
    assert json_of(*work, "check", dataset, "--json")["errors"] == []
    assert len(json_of(*work, "fingerprint", dataset, "--json")["spacings"]) == 6
    assert json_of(*work, "plan", dataset, "--json")["plans_name"] == "nnUNetPlans"
    kept = json_of(*work, "preprocess", dataset, "--config", "3d_fullres", "--json")
    assert len(kept["3d_fullres"]["kept"]) == 6
    run = json_of(*work, "run", dataset, *RUN, "--json")
    assert (run["done"], run["folds"][0]["model"]) == ([], str(model))
    resumed = json_of(*work, "train", dataset, "--config", "3d_fullres", "--fold", "0", "--resume", "--json",
                      "--budget", "3s", "--device", "cpu")  # fmt: skip
    assert resumed["dice"] == run["folds"][0]["dice"]
    predicted = json_of("predict", "-m", model, "-i", dataset / "imagesTs", "-o", tmp_path, "--json", "--device", "cpu")
    assert [record["kept"] for record in predicted] == [False, False]
    scored = json_of("evaluate", dataset / "labelsTs", tmp_path, "--json", "--dataset-json", dataset / "dataset.json")
    assert scored["cases"] == 2
    assert set(scored["mean"]) == {"organ", "lesion", "mean"}


def test_doctor_prints_tables_and_json() -> None:
    found = json_of("doctor", "--device", "cpu", "--json")
    assert (found["schema_version"], found["device"], found["layers"][0]["precision"]) == (1, "cpu", "fp32")
    done = call("doctor", "--device", "cpu")
    assert done.exit_code == 0
    assert "precision in training" in done.stdout
    assert "convolution GFLOP/s" in done.stdout
    unknown = call("doctor", "--device", "cdua")
    assert (unknown.exit_code, "did you mean 'cuda'" in unknown.stderr) == (1, True)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("plan", "target spacing"), ("fingerprint", "spacing, axis 0"), ("scores", "organ")],
)
def test_show_prints_tables_and_json(journey: Journey, kind: str, expected: str) -> None:
    assert expected in call("show", kind, journey.model).stdout
    assert json_of("show", kind, journey.model, "--json")


def test_show_scores_equals_the_summary(journey: Journey) -> None:
    file = journey.model / "fold_0" / "validation" / "summary.json"
    summary = json.loads(file.read_text())
    for path in (file, journey.model, journey.work):
        (table,) = json_of("show", "scores", path, "--json")
        assert table["rows"][0]["values"]["Dice"] == summary["mean"]["1"]["Dice"]
        assert len(table["cases"]) == len(summary["metric_per_case"])


def test_show_tells_what_it_can_show(tmp_path: Path) -> None:
    wrong = call("show", "weights", tmp_path)
    assert (wrong.exit_code, "plan, fingerprint, scores" in wrong.stderr) == (1, True)
    empty = call("show", "plan", tmp_path)
    assert (empty.exit_code, "holds no plan; give plans.json" in empty.stderr) == (1, True)


def test_report_finds_a_dataset_by_its_number(journey: Journey, tmp_path: Path) -> None:
    done = json_of("--work", journey.work, "report", "7", "-o", tmp_path / "r.html", "--no-pictures", "--json")
    assert done == {"report": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size}
    missing = call("--work", journey.work, "report", "8")
    assert (missing.exit_code, "Dataset007_Tiny" in missing.stderr) == (1, True)


@pytest.mark.parametrize("verb", ["evaluate", "report", "preview-augmentation"])
def test_a_folder_in_the_place_of_a_file_is_the_users_to_mend(journey: Journey, tmp_path: Path, verb: str) -> None:
    words: dict[str, tuple[object, ...]] = {
        "evaluate": (journey.dataset / "labelsTs", journey.dataset / "labelsTs"),
        "report": (journey.model, "--no-pictures"),
        "preview-augmentation": (journey.dataset, "--config", "3d_fullres", "--samples", 1),
    }
    more = ("--dataset-json", journey.dataset / "dataset.json") if verb == "evaluate" else ()
    (tmp_path / "folder").mkdir()
    done = call("--work", journey.work, verb, *words[verb], *more, "-o", tmp_path / "folder")
    assert done.exit_code == 1, done.output
    assert "folder: is a folder already; name another file, or remove the folder" in done.stderr
    assert [*tmp_path.iterdir()] == [tmp_path / "folder"]
    assert not [*(tmp_path / "folder").iterdir()]


def test_the_record_of_a_case_tells_skipped_tiles_and_the_time_of_each_phase(journey: Journey, tmp_path: Path) -> None:
    images = journey.dataset / "imagesTs"
    done = json_of("predict", "-m", journey.model, "-i", images, "-o", tmp_path, "--json", "--device", "cpu", "--exact")
    assert {"read_s", "predict_s", "export_s", "tiles", "tiles_skipped"} <= set(done[0])
    document = json.loads((tmp_path / "prediction.json").read_text())
    assert document["options"]["exact"] is True
    assert {case["tiles_skipped"] for case in document["cases"].values()} == {0}
