"""Datasets with explicit file lists: case ids come from the list, not from the label files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from journeys import call, shrink

FAST = ("--set", "num_iterations_per_epoch=1", "--set", "num_val_iterations_per_epoch=1", "--set", "batch_size=2")


@pytest.fixture(scope="module")
def listed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which every label map is called seg.nii.gz, in a folder per subject."""
    folder = tmp_path_factory.mktemp("listed") / "Dataset041_Listed"
    document = json.loads((tiny / "dataset.json").read_text())
    ending, document["dataset"] = document["file_ending"], {}
    for index, label in enumerate(sorted((tiny / "labelsTr").iterdir())):
        subject = folder / f"sub-{index}"
        subject.mkdir(parents=True)
        image = tiny / "imagesTr" / f"{label.name.removesuffix(ending)}_0000{ending}"
        shutil.copyfile(image, subject / f"t1{ending}")
        shutil.copyfile(label, subject / f"seg{ending}")
        files = {"images": [f"{subject.name}/t1{ending}"], "label": f"{subject.name}/seg{ending}"}
        document["dataset"][f"patient{index}"] = files
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_every_verb_knows_a_case_by_its_id(listed: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert call("check", listed).exit_code == 0
    assert call("--work", work, "plan", listed).exit_code == 0
    shrink(work / "preprocessed" / listed.name / "nnUNetPlans.json")
    done = call("--work", work, "run", listed, "-c", "3d_fullres", "--folds", "0,1", "--epochs", "1", *FAST)
    assert done.exit_code == 0, done.output
    results = work / "results" / listed.name
    model = results / "Trainer__nnUNetPlans__3d_fullres"
    held_out = {file.name for file in model.glob("fold_*/validation/*.nii.gz")}
    assert held_out
    assert all(name.startswith("patient") for name in held_out)
    assert (results / "model" / "selection.json").is_file()
    gathered = tmp_path / "gathered"
    for words in (
        ("--work", work, "select", listed),
        ("accumulate-crossval", model, "-o", gathered),
        ("evaluate", listed, gathered),
        ("determine-postprocessing", listed, gathered),
        ("report", results, "-o", tmp_path / "report.html"),
    ):
        done = call(*words)
        assert done.exit_code == 0, done.output
    summary = json.loads((gathered / "summary.json").read_text())
    scored = summary["metric_per_case"]
    assert {Path(case["prediction_file"]).name for case in scored} == held_out
    for case in scored:  # each with the label map of its own
        subject = Path(case["prediction_file"]).name.removesuffix(".nii.gz").replace("patient", "sub-")
        assert Path(case["reference_file"]).parent.name == subject
    page = (tmp_path / "report.html").read_text()
    assert "patient" in page
    assert "its image is missing" not in page
