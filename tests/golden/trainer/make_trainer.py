"""Make the trainer goldens with nnU-Net itself; run with a python that has nnunetv2 2.8.1 installed.

    python tests/golden/trainer/make_trainer.py

`tasks.json` holds plans and dataset.json of small tasks; `recorded.json` what nnU-Net's training with
`fixed_batches_trainer.py` records for each: black-box behaviour, nothing of its code.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
DIGITS = 9


def main() -> None:
    """Write recorded.json."""
    folders = {name: tempfile.mkdtemp() for name in ("raw", "preprocessed", "results")}
    os.environ.update({"nnUNet_compile": "f", **{f"nnUNet_{name}": folder for name, folder in folders.items()}})
    sys.path.insert(0, str(HERE))
    import fixed_batches_trainer
    import torch

    given = json.loads((HERE / "tasks.json").read_text())
    plans = given["plans"]
    folder = Path(folders["preprocessed"], plans["dataset_name"])
    for configuration in plans["configurations"].values():
        (folder / configuration["data_identifier"]).mkdir(parents=True, exist_ok=True)
        (folder / configuration["data_identifier"] / "case.b2nd").touch()  # only its suffix is looked at
    (folder / "dataset_fingerprint.json").write_text("{}")
    recorded = {}
    for name, task in given["tasks"].items():
        dataset_json = given["datasets"][task["dataset"]]
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
        kind = getattr(fixed_batches_trainer, task["trainer"])
        new = {**copy.deepcopy(plans), "continue_training": False}
        trainer = kind(new, task["configuration"], 0, dataset_json, torch.device("cpu"))
        trainer.run_training()
        recorded[name] = json.loads((Path(trainer.output_folder) / "recorded.json").read_text())
    text = json.dumps(recorded, default=float)
    rounded = json.loads(text, parse_float=lambda value: float(f"{float(value):.{DIGITS}g}"))
    lines = [f'  "{name}": {json.dumps(values)}' for name, values in rounded.items()]
    (HERE / "recorded.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
