"""Python blocks and the tutorial of a network of one's own run as the documentation shows them, on a tiny phantom."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from journeys import Journey, call

import segwright
from dicom_phantom import write_series

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
ELSEWHERE = {
    "augmentation.md": "test_augmentation_how_to.py",
    "change-the-network.md": "test_how_to.py",
    "extend.md": "test_how_to.py",
    "nnunet-trainers.md": "tests/unit/compat/test_ports.py",
    "serve.md": "tests/unit/deploy/serve/test_serving.py",
    "many-tasks.md": "test_parallel_runs.py",
}
"""Pages whose blocks other tests run."""

SHORT = ("--iterations", "2", "--batch-size", "2", "--device", "cpu", "--set", "num_val_iterations_per_epoch=1")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _FENCED.findall(page.read_text(encoding="utf-8")) if name == language]


def programs(page: Path) -> list[str]:
    return blocks(page, "python")


def is_file(program: str) -> bool:
    return re.match(r"# \S+\.py\n", program) is not None


@pytest.fixture
def here(journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with what the pages assume: dataset 4 in the work folder, scans, a model, a checkpoint."""
    shutil.copytree(journey.work, tmp_path / "segwright-work")
    scan = sorted((journey.dataset / "imagesTs").glob("*.nii.gz"))[0]
    shutil.copy(scan, tmp_path / "scan.nii.gz")
    (tmp_path / "IMAGES").mkdir()
    shutil.copy(scan, tmp_path / "IMAGES")
    np.save(tmp_path / "scan.npy", np.asarray(nibabel.load(scan).dataobj).T)
    shutil.make_archive(str(tmp_path / "Liver"), "zip", journey.model.parent, journey.model.name)
    shutil.copytree(journey.model / "fold_0", tmp_path / "fold_0")
    shutil.copytree(journey.work / "results" / journey.dataset.name / "model", tmp_path / "model")
    write_series(tmp_path / "scan", np.load(tmp_path / "scan.npy").round().astype(np.int16), number=4)
    shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "scan")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    few = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}

    def train(dataset: Any, *, settings: Any = None, name: str = "shown", **options: Any) -> Any:
        assert dataset == 4
        return real_train(journey.dataset, settings={**(settings or {}), **few}, name=name, device="cpu", **options)

    real_train = segwright.train
    monkeypatch.setattr(segwright, "train", train, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith(("segwright", "torch", "numpy")):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if programs(page) and page.name not in ELSEWHERE], ids=lambda page: page.stem
)
def test_blocks_run(page: Path, here: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = {
        "path/to/Dataset004_X": str(journey.dataset),
        "path/to/model": str(journey.model),
        'budget="10m"': 'budget="3s", configurations=["3d_fullres"], device="cpu"',
        'api.tasks("4", folds="all")': f'api.tasks("{journey.dataset}", configurations=["3d_fullres"], folds="all")',
    }
    monkeypatch.setattr(subprocess, "run", partial(_submitted, []))  # stands for sbatch
    if page.stem == "share":
        (here / "Liver.zip").unlink()  # which the page makes
    namespace: dict[str, Any] = {}
    for program in programs(page):
        if is_file(program):
            name = program.split(maxsplit=2)[1]
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text(program)
        else:
            for shown, real in replaced.items():
                program = program.replace(shown, real)
            exec(compile(program, f"{page.name}", "exec"), namespace)
    if "labels" in namespace:
        assert set(np.unique(namespace["labels"])) <= {0, 1, 2}


def _submitted(seen: list[Any], command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    seen.append(command)
    return subprocess.CompletedProcess(command, 0, f"{100 + len(seen)}\n", "")


@pytest.mark.slow
def test_the_tutorial_of_a_network(here: Path, journey: Journey) -> None:
    page = ROOT / "docs" / "tutorials" / "own-network.md"
    for program in programs(page):
        if is_file(program):
            (here / program.split(maxsplit=2)[1]).write_text(program)
    shown = [line for block in blocks(page, "") for line in block.splitlines()]
    verbs = [line.split()[1] for line in shown]
    assert verbs == ["plan", "preprocess", "train", "train", "compare", "predict", "train"]
    for line in shown:
        line = line.replace("results/DATASET/", f"results/{journey.dataset.name}/").replace("--epochs 20", "--epochs 1")
        words = shlex.split(line.replace("DATASET", str(journey.dataset)))[1:]
        result = call(*words, *(SHORT if words[0] == "train" else ()))
        is_too_small = (
            words[0] == "compare" and "a comparison needs 6" in result.stderr
        )  # the phantom has 2 held-out cases
        assert result.exit_code == 0 or is_too_small, result.stderr
    assert len([*(here / "OUT").glob("*.nii.gz")]) == 1


def test_pages_with_tests_elsewhere_exist() -> None:
    names = {page.name for page in PAGES if programs(page)}
    assert names >= set(ELSEWHERE)
