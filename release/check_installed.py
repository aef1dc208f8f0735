"""Install a wheel into a new environment and use it there: `python release/check_installed.py WHEEL SDIST`.

Runs the demo, a prediction, whose log has to name the compiled kernels, and the fast tests of the sdist. These import
the installed package; in place of the sdist's `src/segwright` they find a copy of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

CONSTRAINTS: Final = Path(__file__).parents[1] / "constraints.txt"
BUDGET: Final = "20s"
KERNELS: Final = "CPU kernels: "


def check(wheel: Path, sdist: Path, folder: Path) -> None:
    """Run all checks of a wheel in an empty folder; the first that fails ends the program."""
    python = install(wheel, folder / "environment")
    segwright = (str(python), "-m", "segwright")
    demo = json.loads(output(*segwright, "demo", "-o", "demo", "--budget", BUDGET, "--json", folder=folder))
    images = next((folder / "demo").rglob("imagesTs"))
    command = (*segwright, "predict", "--model", demo["model"], "-i", str(images), "-o", "predicted", "--device", "cpu")
    log = subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True, text=True).stderr
    line = next((each for each in log.splitlines() if each.startswith(KERNELS)), "")
    if " floats" not in line:
        sys.exit(f"{wheel.name}: predicts without the compiled kernels: {line or log}")
    print(line)
    tree = unpack(sdist, folder / "sdist")
    package = Path(output(str(python), "-c", "import segwright; print(segwright.__file__)", folder=tree).strip()).parent
    shutil.rmtree(tree / "src" / "segwright")
    shutil.copytree(package, tree / "src" / "segwright")
    tests = (str(python), "-m", "pytest", "-p", "no:cacheprovider", "--installed", "-m", "not slow")
    print(f"tests of {package}", flush=True)
    subprocess.run(tests, cwd=tree, env=environment(), check=True)


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel with what its tests need, and return the Python that has it."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sysconfig.get_platform().startswith("win") else "bin") / "python"
    pip = (str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS))
    subprocess.run((*pip, "torch"), check=True, env=environment())
    subprocess.run((*pip, f"segwright[test] @ {wheel.absolute().as_uri()}"), check=True, env=environment())
    return python


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack an sdist and return its only folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def output(*command: str, folder: Path) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, cwd=folder, env=environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


def environment() -> dict[str, str]:
    """Return the variables without those by which another copy of the package could be imported."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def main() -> None:
    """Check the given wheel in a temporary folder."""
    wheel, sdist = map(Path, sys.argv[1:])
    with TemporaryDirectory() as folder:
        check(wheel, sdist.absolute(), Path(folder))


if __name__ == "__main__":
    main()
