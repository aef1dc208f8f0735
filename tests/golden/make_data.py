"""Ask nnU-Net 2.8.1 for splits, fingerprints and image readings; run with its python, writes tests/golden/data.

PYTHON_OF_THE_ORACLE tests/golden/make_data.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit" / "data"))

import made_files  # noqa: E402


def splits() -> dict[str, Any]:
    """Return the folds for several numbers of cases; names are not in the order they are listed."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    result = {}
    for count in (5, 6, 7, 11, 20, 103, 131):
        names = [f"case_{(index * 37) % 1009}" for index in range(count)]
        result[str(count)] = {"identifiers": names, "splits": generate_crossval_split(sorted(names))}
    return result


def fingerprints() -> dict[str, Any]:
    """Return what the command writes for each made dataset."""
    result = {}
    with TemporaryDirectory() as place:
        raw, preprocessed = Path(place) / "raw", Path(place) / "preprocessed"
        made_files.write_fingerprint_volumes(raw / "Dataset001_full", every_case_has_foreground=True)
        made_files.write_fingerprint_volumes(raw / "Dataset002_empty", every_case_has_foreground=False)
        made_files.write_fingerprint_pictures(raw / "Dataset003_pictures")
        roots = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed, "nnUNet_results": Path(place) / "results"}
        environment = os.environ | {key: str(path) for key, path in roots.items()}
        command = str(Path(sys.executable).with_name("nnUNetv2_extract_fingerprint"))
        for folder in sorted(raw.iterdir()):
            subprocess.run([command, "-d", folder.name[7:10], "-np", "1"], env=environment, check=True)
            document = json.loads((preprocessed / folder.name / "dataset_fingerprint.json").read_text())
            result[folder.name.split("_")[1]] = document
    return result


def images() -> dict[str, Any]:
    """Return array, spacing and label reading of every made image."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    package = Path(nnunetv2.__file__).parent / "imageio"
    result = {}
    with TemporaryDirectory() as place:
        for name, reader in made_files.write_images(Path(place)).items():
            instance = recursive_find_python_class(str(package), reader, "nnunetv2.imageio")()
            array, properties = instance.read_images([str(Path(place) / name)])
            result[name] = {
                "shape": list(array.shape),
                "spacing": [float(extent) for extent in properties["spacing"]],
                "values": np.asarray(array, np.float64).ravel().tolist(),
            }
    return result


if __name__ == "__main__":
    for name, make in (("splits", splits), ("fingerprints", fingerprints), ("images", images)):
        (HERE / "data" / f"{name}.json").write_text(json.dumps(make(), sort_keys=True) + "\n")
