"""Train the two small models of the goldens here and pack them as nnU-Net's command does, for `make_commands.py`:

    python -m tests.golden.commands.make_models WORK_FOLDER

The zip file has no pictures, which are larger than the models.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

from segwright import api
from segwright.cli.nnunet import program
from segwright.workspace import Workspace
from tests.golden.commands import subset

HERE = Path(__file__).parent
HIPPOCAMPUS = HERE.resolve().parents[3] / "shared" / "data" / subset.DATASET
SETTINGS: dict[str, Any] = {
    "num_epochs": 1,
    "num_val_iterations_per_epoch": 1,
    "optimizer": "adamw",
    "initial_lr": 5e-3,
    "precision": "fp32",
}
ITERATIONS = {"2d": 300, "3d_fullres": 120}


def main(work: Path) -> None:
    workspace = Workspace.under(work)
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
    raw = workspace.raw / subset.DATASET
    subset.write_dataset(HIPPOCAMPUS, raw)
    program.execute(["plan_and_preprocess", "-d", "4", "-c", *subset.CONFIGURATIONS])
    folder = workspace.preprocessed_dataset(raw.name)
    subset.shrink(folder / "nnUNetPlans.json", folder / f"{subset.PLANS}.json")
    for name in subset.CONFIGURATIONS:
        settings = {**SETTINGS, "num_iterations_per_epoch": ITERATIONS[name]}
        api.train(
            raw,
            workspace=workspace,
            configuration=name,
            fold=0,
            plans=subset.PLANS,
            name=subset.TRAINER,
            settings=settings,
        )
    archive = work / "models.zip"
    options = ["-d", "4", "-o", str(archive), "-c", *subset.CONFIGURATIONS, "-f", "0", "-p", subset.PLANS]
    program.execute(["export_model_to_zip", *options, "--exp_cv_preds"])
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(HERE / "models.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".png"):
                new.writestr(entry.filename, old.read(entry))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
