"""Train a registered network: `python -m examples.named_network DATASET_FOLDER`.

The same on the command line: `segwright run DATASET --budget 10m --network residual-unet`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import segwright
from segwright.workspace import Workspace


def train(dataset: Path, workspace: Workspace | None = None, **options: Any) -> dict[str, float]:
    """Run all stages with a U-Net with residual encoder; return the Dice of the held-out cases."""
    report = segwright.run(dataset, workspace=workspace, network="residual-unet", **options)
    return report.folds[0].dice


if __name__ == "__main__":
    print(train(Path(sys.argv[1]), budget="10m"))
