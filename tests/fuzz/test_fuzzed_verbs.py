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


def _make_task(folder: Path) -> list[Path]:
    """Write a Decathlon task with two channels, and the same as a task of nnU-Net v1."""
    task, old = folder / "Task01_Test", folder / "Task02_Test"
    _make_images(old / "imagesTr", ["a", "b"], labels=old / "labelsTr")
    shutil.copytree(old / "labelsTr", task / "labelsTr")
    (task / "imagesTr").mkdir()
    for file in [*(old / "imagesTr").iterdir()]:
        channel = nibabel.load(file)
        shutil.copy(file, file.with_name(file.name.replace("_0000", "_0001")))
        both = nibabel.Nifti1Image(np.stack([np.asarray(channel.dataobj)] * 2, axis=-1), np.eye(4))
        nibabel.save(both, task / "imagesTr" / file.name.replace("_0000", ""))
    document = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "whole", "2": "core"}}
    written = [write(each / "dataset.json", {**document, "numTraining": 2}) for each in (task, old)]
    images = [task / "imagesTr" / "a.nii.gz", old / "imagesTr" / "a_0001.nii.gz"]
    return [*written, *images, task / "labelsTr" / "b.nii.gz"]


def _use_task(path: Path) -> None:
    task = next(parent for parent in path.parents if parent.name.startswith("Task"))
    folder, kind = task.parent, "msd" if task.name.startswith("Task01") else "nnunet-v1"
    (folder / "out").mkdir()
    _run(folder, [["convert", kind, str(task), str(folder / "out"), "--yes"]])


def _make_folders(folder: Path) -> list[Path]:
    """Write images and label maps in folders of their own, with a table."""
    mine = folder / "mine"
    _make_images(mine / "scans", ["a", "b"], labels=mine / "masks")
    lines = ["patient,image,mask", *(f"{name},scans/{name}_0000.nii.gz,masks/{name}.nii.gz" for name in "ab")]
    (mine / "files.csv").write_text("\n".join(lines))
    return [mine / "files.csv", mine / "scans" / "a_0000.nii.gz", mine / "masks" / "b.nii.gz"]


def _use_folders(path: Path) -> None:
    mine = next(parent for parent in path.parents if parent.name == "mine")
    new = str(mine.parent / "out" / "Dataset001_New")
    _run(
        mine.parent,
        [
            ["init", str(mine), "--force", "--json"],
            ["convert", "folders", str(mine / "files.csv"), new, "--json"],
            [
                "convert",
                "folders",
                str(mine),
                f"{new}er",
                "--images",
                "scans/{case}_0000.nii.gz",
                "--labels",
                "masks/{case}.nii.gz",
            ],
        ],
    )


def _make_mapped(folder: Path) -> list[Path]:
    """Write a dataset with mapped labels, and its conversion for nnU-Net."""
    dataset = folder / "Dataset001_Test"
    _make_images(dataset / "imagesTr", ["a", "b"], labels=dataset / "labelsTr")
    document = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "whole": 1}, "numTraining": 2}
    described = write(dataset / "dataset.json", {**document, "file_ending": ".nii.gz", "label_map": {"2": 1}})
    result = CliRunner().invoke(app, ["convert", "nnunet", str(dataset), str(folder / "done"), "--yes"])
    assert result.exit_code == 0, result.output
    return [described, dataset / "labelsTr" / "a.nii.gz", folder / "done" / "conversion.json"]


def _use_mapped(path: Path) -> None:
    folder = next(parent for parent in path.parents if (parent / "Dataset001_Test").is_dir())
    dataset = str(folder / "Dataset001_Test")
    _run(
        folder,
        [["convert", "nnunet", dataset, str(folder / "done")], ["convert", "nnunet", dataset, str(folder / "out")]],
    )


TARGETS: dict[str, Target] = {
    "model": Target(make=_make_model, read=_use_model, mutate_at=_mutate),
    "dataset": Target(make=_make_dataset, read=_use_dataset, mutate_at=_mutate),
    "task": Target(make=_make_task, read=_use_task, mutate_at=_mutate),
    "folders": Target(make=_make_folders, read=_use_folders, mutate_at=_mutate),
    "mapped": Target(make=_make_mapped, read=_use_mapped, mutate_at=_mutate),
}


def test_verbs_end_with_0_or_1(fuzz_count: int, fuzz_seed: int) -> None:
    count = max(1, fuzz_count // SLOWER)
    outcome = fuzz("tests.fuzz.test_fuzzed_verbs:*", count=count, seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == count
