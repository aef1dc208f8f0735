"""Verbs end with 0 or 1, whatever a file of a dataset, a model or predictions holds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import nibabel
import numpy as np
from typer.testing import CliRunner

from segwright.cli.main import app
from tests.fuzz.isolation import Target, fuzz
from tests.fuzz.made_models import DATASET, SUMMARY, make_model, write
from tests.fuzz.mutation import mutate_bytes, mutate_json, mutate_json_lines

SLOWER = 10
"""A verb takes as much longer as a reader, and gets as many fewer files."""


def _run(folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Run commands with their output under `folder/out`, which is gone afterwards."""
    try:
        for command in commands:
            result = CliRunner().invoke(app, ["--quiet", "--debug", *command])
            assert result.exit_code in (0, 1), f"{' '.join(command)}: exit {result.exit_code}\n{result.output[-2000:]}"
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def _mutate(path: Path, content: bytes, rng: Random) -> bytes:
    kinds = {".json": mutate_json, ".jsonl": mutate_json_lines}
    return kinds.get(path.suffix, mutate_bytes)(content, rng)


def _make_images(folder: Path, names: Sequence[str], *, labels: Path | None = None) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        image = rng.normal(100, 20, (9, 10, 8)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{name}_0000.nii.gz")
        if labels is not None:
            labels.mkdir(exist_ok=True)
            label = (image > 100).astype(np.uint8) + (image > 120)
            nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), np.eye(4)), labels / f"{name}.nii.gz")


def _make_model(folder: Path) -> list[Path]:
    fold = make_model(folder / "Trainer__nnUNetPlans__3d_fullres")
    _make_images(folder / "images", "a")
    write(folder / "predictions" / "summary.json", SUMMARY)
    documents = [path for path in fold.parent.rglob("*.json*") if path.name != "checkpoint_final.json"]
    return [*sorted(documents), fold / "checkpoint_final.json"]


def _use_model(path: Path) -> None:
    model = next(parent for parent in path.parents if parent.name.startswith("Trainer__"))
    folder = model.parent
    out = folder / "out"
    _run(
        folder,
        [
            ["predict", "--model", str(model), "-i", str(folder / "images"), "-o", str(out / "p"), "--device", "cpu"],
            ["report", str(model), "-o", str(out / "report.html")],
            ["export-model", str(model), str(out / "exported")],
            ["status", str(model)],
        ],
    )


def _make_dataset(folder: Path) -> list[Path]:
    dataset = folder / "Dataset001_Test"
    names = [f"c{index}" for index in range(5)]
    _make_images(dataset / "imagesTr", names, labels=dataset / "labelsTr")
    document = {**DATASET, "labels": {"background": 0, "whole": 1, "core": 2}}
    del document["regions_class_order"], document["overwrite_image_reader_writer"]
    splits = [{"train": names[1:], "val": names[:1]}, {"train": names[:4], "val": names[4:]}]
    return [write(dataset / "dataset.json", document), write(dataset / "splits_final.json", splits)]


def _use_dataset(path: Path) -> None:
    dataset = str(path.parent)
    folder = path.parent.parent
    work = ["--work", str(folder / "out")]
    maps = str(path.parent / "labelsTr")
    _run(
        folder,
        [
            ["check", dataset],
            [*work, "plan", dataset],
            [
                "evaluate",
                maps,
                maps,
                "--dataset-json",
                str(path.parent / "dataset.json"),
                "-o",
                str(folder / "out" / "s.json"),
            ],
        ],
    )


TARGETS: dict[str, Target] = {
    "model": Target(make=_make_model, read=_use_model, mutate_at=_mutate),
    "dataset": Target(make=_make_dataset, read=_use_dataset, mutate_at=_mutate),
}


def test_verbs_end_with_0_or_1(fuzz_count: int, fuzz_seed: int) -> None:
    count = max(1, fuzz_count // SLOWER)
    outcome = fuzz("tests.fuzz.test_fuzzed_verbs:*", count=count, seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == count
