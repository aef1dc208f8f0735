"""Trains tiny models here, exports them, and has nnU-Net predict with them: prints the share of equal labels.

    python tests/golden/exchange/check_export.py ORACLE_PYTHON [WORK_FOLDER]

ORACLE_PYTHON is the interpreter of an environment with nnunetv2 2.8.1, which is only run, never imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from segwright import api
from segwright.data import phantom
from segwright.workspace import Workspace

SETTINGS: dict[str, Any] = {
    "num_epochs": 3,
    "num_iterations_per_epoch": 20,
    "num_val_iterations_per_epoch": 1,
    "batch_size": 2,
    "momentum": 0.9,
}
MODELS: tuple[tuple[str, str, dict[str, Any], bool], ...] = (
    ("plain 3D", "3d_fullres", {}, False),
    ("plain 2D", "2d", {}, False),
    ("residual 3D", "3d_fullres", {"network": "residual-unet"}, False),
    ("batch norm 2D", "2d", {"norm": "batch"}, False),
    ("regions 3D", "3d_fullres", {}, True),
)

ORACLE = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
if __name__ == "__main__":
    model, images, output = sys.argv[1:]
    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, use_folds=("all",), checkpoint_name="checkpoint_final.pth")
    predictor.predict_from_files(images, output, num_processes_preprocessing=1, num_processes_segmentation_export=1)
"""


def make_dataset(raw: Path, *, regions: bool) -> None:
    phantom.write_dataset(raw, num_training=6, num_test=3, edge=32)
    if regions:
        document = json.loads((raw / "dataset.json").read_text())
        document["labels"] = {"background": 0, "whole": [1, 2], "lesion": 2}
        document["regions_class_order"] = [1, 2]
        (raw / "dataset.json").write_text(json.dumps(document))


def agreement(first: Path, second: Path) -> float:
    same = total = 0
    for file in sorted(first.glob("*.nii.gz")):
        ours, theirs = (np.asarray(nib.load(folder / file.name).dataobj) for folder in (first, second))
        same += int((ours == theirs).sum())
        total += ours.size
    return same / total


def main(oracle: str, work: Path) -> None:
    for index, (title, configuration, settings, regions) in enumerate(MODELS, start=1):
        folder = work / str(index)
        workspace = Workspace.under(folder)
        raw = workspace.raw / f"Dataset{index:03d}_Export"
        make_dataset(raw, regions=regions)
        api.fingerprint(raw, workspace=workspace)
        api.plan(raw, workspace=workspace)
        fold = api.train(
            raw,
            workspace=workspace,
            configuration=configuration,
            fold="all",
            settings={**SETTINGS, **settings},
            device="cpu",
        )
        api.predict(fold.model, raw / "imagesTs", folder / "ours", precision="fp32", device="cpu")
        exported = api.export_model(fold.model, folder / "exported")
        command = [oracle, "-c", ORACLE, str(exported), str(raw / "imagesTs"), str(folder / "theirs")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        labels = np.unique(np.asarray(nib.load(next((folder / "ours").glob("*.nii.gz"))).dataobj)).tolist()
        print(f"{title}: {agreement(folder / 'ours', folder / 'theirs'):.4%} equal, labels {labels}", flush=True)


if __name__ == "__main__":
    place = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    main(sys.argv[1], place)
