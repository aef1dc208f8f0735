"""MedNeXt from plan to prediction: kernel 3, then kernel 5 by UpKern; export says why it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from journeys import Journey, call, shrink

SHORT = ("--config", "3d_fullres", "--fold", "0", "--epochs", "1", "--iterations", "2", "--device", "cpu")
SHORT += ("--batch-size", "2", "--set", "num_val_iterations_per_epoch=1")


def test_mednext_is_planned_trained_enlarged_and_predicts(journey: Journey, tmp_path: Path) -> None:
    work = ("--work", tmp_path / "work")
    shutil.copytree(journey.work, tmp_path / "work")
    models = {}
    for preset, plans in (("mednext-s", "MedNeXtSPlans"), ("mednext-s-k5", "MedNeXtSk5Plans")):
        planned = call(*work, "plan", journey.dataset, "--preset", preset, "--explain")
        assert planned.exit_code == 0, planned.stderr
        assert f"preset '{preset}'" in planned.stdout
        shrink(tmp_path / "work" / "preprocessed" / journey.dataset.name / f"{plans}.json")
        more = ("--pretrained", models["mednext-s"]) if models else ("--set", "loss=skeleton_recall")
        trained = call(*work, "train", journey.dataset, "--plans", plans, *SHORT, *more)
        assert trained.exit_code == 0, trained.stderr
        models[preset] = tmp_path / "work" / "results" / journey.dataset.name / f"Trainer__{plans}__3d_fullres"
    record = json.loads((models["mednext-s-k5"] / "fold_0" / "train.json").read_text())
    notes = "\n".join(record["notes"])
    assert "depthwise kernels of the source resized from 3x3x3 to 5x5x5" in notes
    assert "as published for MedNeXt" in notes
    assert not [*models["mednext-s-k5"].rglob("*.pth")]

    out = tmp_path / "out"
    predicted = call("predict", "--model", models["mednext-s-k5"], "-i", journey.dataset / "imagesTs", "-o", out)
    assert predicted.exit_code == 0, predicted.stderr
    assert len([*out.glob("*.nii.gz")]) == 2
    exported = call("export-model", models["mednext-s-k5"], tmp_path / "exported")
    assert exported.exit_code == 1
    assert (
        "network 'mednext' cannot be exported: nnU-Net has no network 'mednext', so only segwright" in exported.stderr
    )
    assert not (tmp_path / "exported").exists()
