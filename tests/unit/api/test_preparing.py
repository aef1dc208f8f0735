"""What preprocessing imports decides how long a small dataset takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from segwright import api
from segwright.data.phantom import write_dataset
from segwright.workspace import Workspace

PROGRAM = """
import sys
from pathlib import Path
from segwright import api
from segwright.workspace import Workspace

dataset, work = map(Path, sys.argv[1:])
report = api.preprocess(dataset, workspace=Workspace.under(work), configurations=["3d_fullres"])["3d_fullres"]
sys.exit(len(report.done) != 5 or "torch" in sys.modules)
"""


def test_preprocessing_without_resampling_imports_no_torch(tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset001_Tiny"
    write_dataset(dataset, num_training=5, num_test=0, edge=16)
    api.plan(dataset, workspace=Workspace.under(tmp_path))
    done = subprocess.run([sys.executable, "-c", PROGRAM, dataset, tmp_path], check=False)
    assert done.returncode == 0
