"""Training with a tenth of the voxels annotated, the rest ignored, is nearly as good as with all."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from journeys import shrink

from segwright import api
from segwright.data import phantom
from segwright.workspace import Workspace

IGNORE = 3
SETTINGS = {
    "num_epochs": 9,
    "num_iterations_per_epoch": 25,
    "num_val_iterations_per_epoch": 1,
    "batch_size": 2,
    "momentum": 0.9,  # 0.99 averages over more steps than this training has
}


def make_sparse(raw: Path, share: float) -> None:
    """Leave a random share of the training voxels annotated."""
    rng = np.random.default_rng(0)
    for file in sorted((raw / "labelsTr").iterdir()):
        image = nib.load(file)
        label = np.asarray(image.dataobj).copy()
        label[rng.random(label.shape) >= share] = IGNORE
        nib.save(nib.Nifti1Image(label, image.affine, image.header), file)
    document = json.loads((raw / "dataset.json").read_text())
    document["labels"]["ignore"] = IGNORE
    (raw / "dataset.json").write_text(json.dumps(document))


@pytest.mark.slow
def test_a_tenth_of_the_annotation_is_nearly_enough(tmp_path: Path) -> None:
    work = Workspace.under(tmp_path)
    dice = {}
    for name, share in (("Dataset001_Full", 1.0), ("Dataset002_Sparse", 0.1)):
        raw = work.raw / name
        phantom.write_dataset(raw, num_training=8, num_test=4, edge=24)
        names = raw / "dataset.json"
        if share < 1:
            names = tmp_path / "dataset.json"
            names.write_bytes((raw / "dataset.json").read_bytes())
            make_sparse(raw, share)
        api.fingerprint(raw, workspace=work)
        api.plan(raw, workspace=work)
        shrink(work.plans_file(name, "nnUNetPlans"), width=8)
        fold = api.train(raw, workspace=work, configuration="3d_fullres", fold="all", settings=SETTINGS, device="cpu")
        api.predict(fold.model, raw / "imagesTs", tmp_path / name, device="cpu")
        dice[share] = api.evaluate(raw / "labelsTs", tmp_path / name, dataset_json=names).scores.mean_dice
    assert dice[1.0] > 0.85
    assert dice[0.1] > dice[1.0] - 0.05, dice
