"""Set up nnU-Net 2.8.1 in a separate environment; it is run there, never imported."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
HERE = Path(__file__).parent / "oracle_side"
DEFAULT_FOLDER = Path.home() / ".cache" / "segwright-oracle"


def set_up() -> Path | None:
    """Return the folder of nnU-Net's programs, creating its environment if needed; None without its set-up script."""
    setup = SHARED / "oracle" / "setup.sh"
    if (DEFAULT_FOLDER / "ready").exists():
        return DEFAULT_FOLDER / "bin"
    if not setup.is_file():
        return None
    subprocess.run(["bash", str(setup), str(DEFAULT_FOLDER)], check=True)
    return DEFAULT_FOLDER / "bin"
