"""A model trained on few cases flags real scans of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from journeys import RUN, call, shrink

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SCANS, CASES = DATA / "example_scans", DATA / "Dataset004_Hippocampus"

pytestmark = pytest.mark.skipif(
    not (SCANS.is_dir() and CASES.is_dir()), reason="the example scans and the hippocampus cases are not here"
)


@pytest.mark.parametrize("count", [2, 5])
def test_the_ct_and_the_mr_are_flagged_by_a_model_of_ours(count: int, tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset004_Few"
    (dataset / "imagesTr").mkdir(parents=True)
    (dataset / "labelsTr").mkdir()
    for image in sorted((CASES / "imagesTr").glob("*_0000.nii.gz"))[:count]:
        label = image.name.replace("_0000", "")
        shutil.copy(image, dataset / "imagesTr" / image.name)
        shutil.copy(CASES / "labelsTr" / label, dataset / "labelsTr" / label)
    description = json.loads((CASES / "dataset.json").read_text()) | {"numTraining": count}
    (dataset / "dataset.json").write_text(json.dumps(description))
    cases = [image.name.removesuffix("_0000.nii.gz") for image in sorted((dataset / "imagesTr").iterdir())]
    (dataset / "splits_final.json").write_text(json.dumps([{"train": cases[1:], "val": cases[:1]}]))
    work = ("--work", tmp_path / "work")
    coarse = ("--spacing", 3, 3, 3)  # that of the scans, which are predicted fast so; the range is that of the files
    assert call("plan", dataset, *coarse, *work).exit_code == 0
    shrink(tmp_path / "work" / "preprocessed" / dataset.name / "nnUNetPlans.json")
    trained = call("run", dataset, *RUN[:4], "--budget", "1s", "--device", "cpu", *work)
    assert trained.exit_code == 0, trained.stderr
    (tmp_path / "scans").mkdir()
    for kind in ("ct", "mr"):
        shutil.copy(SCANS / f"example_{kind}_sm.nii.gz", tmp_path / "scans" / f"{kind}_0000.nii.gz")
    model = next((tmp_path / "work" / "results" / dataset.name).glob("Trainer__*"))
    out = tmp_path / "out"
    done = call("predict", "-m", model, "-i", tmp_path / "scans", "-o", out, "--device", "cpu", "--no-mirroring")
    assert done.exit_code == 0, done.stderr
    records = json.loads((out / "prediction.json").read_text())["cases"]
    assert all(records[kind]["warnings"] for kind in ("ct", "mr")), records
