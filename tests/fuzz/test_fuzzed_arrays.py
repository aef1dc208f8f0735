"""Damaged preprocessed cases and saved probabilities are read or refused, never more."""

from __future__ import annotations

from pathlib import Path
from random import Random

import blosc2
import numpy as np
import SimpleITK as sitk  # noqa: N813

from segwright.data.labels import Labels
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore
from segwright.inference.folder.average_saved import average_folders
from tests.fuzz.isolation import Target, fuzz
from tests.fuzz.mutation import mutate_bytes, mutate_json, zip_mutator

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
SHAPE = (6, 7, 8)


def _make_store(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    axes = (0, 1, 2)
    provenance = Provenance(
        properties={"spacing": [1.0, 1.0, 1.0]},
        shape_before_cropping=SHAPE,
        box=tuple((0, extent) for extent in SHAPE),
        shape_after_cropping=SHAPE,
        spacing=(1.0, 1.0, 1.0),
        transpose_forward=axes,
        transpose_backward=axes,
    )
    CaseStore(folder).save(
        "a",
        rng.normal(size=(1, *SHAPE)).astype(np.float32),
        rng.integers(0, 3, (1, *SHAPE)).astype(np.int16),
        {1: np.array([[1, 2, 3], [4, 5, 6]]), 2: np.zeros((0, 3), int)},
        provenance,
        patch_size=(8, 8, 8),
        source_hash="0",
    )
    return sorted(folder.iterdir())


def _read_store(path: Path) -> None:
    store = CaseStore(path.parent)
    store.is_fresh("a", "0")
    case = store.load("a")
    np.asarray(case.image[:, 1:3])
    np.asarray(case.label[...])
    for rows in case.class_locations.values():
        np.asarray(rows)


def _make_stage(folder: Path) -> list[Path]:
    StageMaps(folder).save("a", np.ones(SHAPE, np.uint8), (8, 8, 8), "0")
    return sorted(folder.iterdir())


def _read_stage(path: Path) -> None:
    maps = StageMaps(path.parent)
    maps.is_fresh("a", SHAPE, "0")
    assert maps.load("a")[...].shape == (1, *SHAPE)


def _make_probabilities(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    values = rng.random((3, *SHAPE)).astype(np.float16)
    for name in ("one", "two"):
        (folder / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.ones(SHAPE, np.uint8)), str(folder / name / "a.nii.gz"))
    np.savez_compressed(folder / "one" / "a.npz", probabilities=values)
    blosc2.asarray(values, urlpath=str(folder / "two" / "a.b2nd"), mode="w")
    return [folder / "one" / "a.npz", folder / "two" / "a.b2nd"]


def _read_probabilities(path: Path) -> None:
    root = path.parent.parent
    average_folders(
        [root / "one", root / "two"],
        root / "out",
        labels=LABELS,
        file_ending=".nii.gz",
        reader="SimpleITKIO",
        overwrite=True,
    )


def _mutate(path: Path, content: bytes, rng: Random) -> bytes:
    kinds = {".json": mutate_json, ".npz": zip_mutator(mutate_bytes)}
    return kinds.get(path.suffix, mutate_bytes)(content, rng)


TARGETS = {
    "store": Target(make=_make_store, read=_read_store, mutate_at=_mutate),
    "stage": Target(make=_make_stage, read=_read_stage, mutate_at=_mutate),
    "probabilities": Target(make=_make_probabilities, read=_read_probabilities, mutate_at=_mutate),
}


def test_damaged_arrays_are_read_or_refused(fuzz_count: int, fuzz_seed: int) -> None:
    outcome = fuzz("tests.fuzz.test_fuzzed_arrays:*", count=fuzz_count * len(TARGETS), seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == fuzz_count * len(TARGETS)
