"""Folders of saved probabilities, averaged: both formats, slab by slab, and what does not fit."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK

from segwright.core.errors import DatasetError, ProblemReport, WorkspaceError
from segwright.core.files.locks import locked
from segwright.data.images.image_io import read_label, write_labels
from segwright.data.labels import Labels
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder.average_saved import average_folders

ENDING, READER = ".nii.gz", "SimpleITKIO"
LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
SHAPE = (4, 6, 5)
GEOMETRY = {
    "spacing": [2.0, 1.0, 1.5],
    "geometry": {"spacing": [1.5, 1.0, 2.0], "origin": [3.0, 0.0, -1.0], "direction": np.eye(3).ravel().tolist()},
}


def save(folder: Path, kind: str, case: str, seed: int) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).random((3, *SHAPE), dtype=np.float32)
    if kind == "npz":
        np.savez_compressed(folder / f"{case}.npz", probabilities=values)
    else:
        blosc2.asarray(values, urlpath=str(folder / f"{case}.b2nd"), mode="w")
    write_labels(values.argmax(axis=0).astype(np.uint8), folder / f"{case}{ENDING}", GEOMETRY, READER)
    return values


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [tmp_path / "first", tmp_path / "second"]


def average(folders: list[Path], output: Path, *, overwrite: bool = False) -> list[Path]:
    return average_folders(folders, output, labels=LABELS, file_ending=ENDING, reader=READER, overwrite=overwrite)


def turn_in_storage(file: Path) -> None:
    image = SimpleITK.Flip(SimpleITK.ReadImage(str(file)), (True, False, False))
    SimpleITK.WriteImage(image, str(file))


def move(file: Path) -> None:
    image = SimpleITK.ReadImage(str(file))
    image.SetOrigin((0, 0, 0))
    SimpleITK.WriteImage(image, str(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move, r"origin differs from that of the first folder's label map"),
        (turn_in_storage, r"is stored along other axes than the first folder's label map, and so are the prob"),
    ],
)
def test_probabilities_of_other_grids_are_refused(
    folders: list[Path], tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    for seed, folder in enumerate(folders):
        save(folder, "npz", "x", seed)
    change(folders[1] / f"x{ENDING}")
    with pytest.raises(DatasetError, match=message):
        average(folders, tmp_path / "out")


def test_labels_are_those_of_the_mean(folders: list[Path], tmp_path: Path) -> None:
    expected = {
        case: np.mean([save(folders[0], "npz", case, seed), save(folders[1], "b2nd", case, seed + 10)], axis=0)
        for seed, case in enumerate(("x", "y"))
    }
    written = average(folders, tmp_path / "out")
    assert [file.name for file in written] == [f"x{ENDING}", f"y{ENDING}"]
    for file in written:
        volume = read_label(file, READER)
        np.testing.assert_array_equal(volume.array[0], expected[file.name.removesuffix(ENDING)].argmax(axis=0))
        assert volume.properties["geometry"]["origin"] == [3.0, 0.0, -1.0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {file.name for file in written}
    with pytest.raises(WorkspaceError, match="already exists"):
        average(folders, tmp_path / "out")
    assert average(folders, tmp_path / "out", overwrite=True) == written


def test_all_that_is_missing_is_said_at_once(folders: list[Path], tmp_path: Path) -> None:
    save(folders[0], "npz", "x", 0)
    save(folders[0], "npz", "y", 0)
    save(folders[1], "npz", "z", 0)
    (folders[0] / f"y{ENDING}").unlink()
    with pytest.raises(ProblemReport) as caught:
        average(folders, tmp_path / "out")
    text = str(caught.value)
    assert [line.split(": ")[1].split(";")[0] for line in text.splitlines()] == [
        "no probabilities of case z",
        "no probabilities of case x",
        "no probabilities of case y",
        f"no label map y{ENDING}, which defines the geometry",
        f"no label map z{ENDING}, which defines the geometry",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 4, 6, 4), np.float32), r"x: .*x.npz: float32 \(3, 4, 6, 4\), expected floats \(3, 4, 6, 5\)"),
        (np.zeros((2, *SHAPE), np.float32), "a head for each label"),
        (np.zeros((3, *SHAPE), np.int32), "expected floats of four axes"),
        (np.zeros((3, *SHAPE), object), "expected floats of four axes"),
        (None, "cannot be read"),
    ],
)
def test_other_arrays_are_refused(
    content: np.ndarray | None, message: str, folders: list[Path], tmp_path: Path
) -> None:
    for folder in folders:
        save(folder, "npz", "x", 0)
    if content is None:
        (folders[1] / "x.npz").write_bytes(b"PK")
    else:
        np.savez(folders[1] / "x.npz", probabilities=content)
    with pytest.raises(DatasetError, match=message):
        average(folders, tmp_path / "out")


def test_a_file_that_is_cut_off_is_refused(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        save(folder, "npz", "x", 0)
    with zipfile.ZipFile(folders[0] / "x.npz") as archive:
        content = archive.read("probabilities.npy")
    with zipfile.ZipFile(folders[0] / "x.npz", "w") as archive:
        archive.writestr("probabilities.npy", content[:-100])
    with pytest.raises(DatasetError, match="is cut off"):
        average(folders, tmp_path / "out")


def _with_objects(folder: Path) -> None:
    np.savez(folder / "x.npz", probabilities=np.array([1, "a"], dtype=object))


def _with_attributes(folder: Path) -> None:
    array = blosc2.asarray(np.zeros((3, *SHAPE), np.float32), urlpath=str(folder / "x.b2nd"), mode="w")
    array.schunk.vlmeta["code"] = "print"


def _of_expressions(folder: Path) -> None:
    array = blosc2.asarray(np.zeros((3, *SHAPE), np.float32), urlpath=str(folder / "other.b2nd"), mode="w")
    (array + array).save(str(folder / "x.b2nd"))
    (folder / "other.b2nd").unlink()


def _too_large(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive, archive.open("probabilities.npy", "w") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (3, 2**20, 2**20, 2**10)}
        np.lib.format.write_array_header_1_0(stream, header)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_with_objects, "expected floats"),
        (_with_attributes, "may hold code or references"),
        (_of_expressions, "holds more than an array"),
        (_too_large, "a head for each label on the grid"),
    ],
)
def test_files_of_others_run_no_code_and_take_no_memory(
    folders: list[Path], tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    for folder in folders:
        save(folder, "npz", "x", 0)
    (folders[1] / "x.npz").unlink()
    make(folders[1])
    with pytest.raises(DatasetError, match=said):
        average(folders, tmp_path / "out")


def test_what_a_killed_run_left_is_swept(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        save(folder, "npz", "x", 0)
    (tmp_path / "out" / ".ensemble-killed").mkdir(parents=True)
    average(folders, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"x{ENDING}"]


def test_folders_without_probabilities_are_told_what_to_do(folders: list[Path], tmp_path: Path) -> None:
    save(folders[0], "npz", "x", 0)
    (folders[1] / "probabilities").mkdir(parents=True)
    with pytest.raises(DatasetError, match="rounded to 8 bits; predict with --probabilities b2nd, or npz"):
        average(folders, tmp_path / "out")
    with pytest.raises(WorkspaceError, match="is one of the folders"):
        average([folders[0], folders[0]], folders[0])


def test_the_mean_can_be_kept_and_averaged_again(folders: list[Path], tmp_path: Path) -> None:
    first, second = save(folders[0], "npz", "x", 0), save(folders[1], "b2nd", "x", 1)
    options = {"labels": LABELS, "file_ending": ENDING, "reader": READER}
    average_folders(folders, tmp_path / "mean", probability_format=ProbabilityFormat(kind="b2nd"), **options)
    stored = blosc2.open(str(tmp_path / "mean" / "x.b2nd"), mode="r")
    np.testing.assert_allclose(stored[:], (first + second) / 2, atol=1e-7)
    [again] = average_folders([tmp_path / "mean", folders[0]], tmp_path / "again", **options)
    expected = (first * 3 + second).argmax(axis=0)
    np.testing.assert_array_equal(read_label(again, READER).array[0], expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.rename(file.with_suffix(".NPZ")), "found a.NPZ, which is spelled in another way"),
        (lambda file: (file.unlink(), file.symlink_to("gone.npz")), "found a.npz, which is a link to gone.npz"),
        (lambda file: (file.unlink(), file.mkdir()), "found a.npz, which is a folder"),
    ],
)
@pytest.mark.parametrize("cases", [("a",), ("a", "b")])
def test_what_is_nearly_a_file_of_probabilities_is_named(
    folders: list[Path], tmp_path: Path, change: Callable[[Path], object], said: str, cases: tuple[str, ...]
) -> None:
    for index, folder in enumerate(folders):
        for case in cases:
            save(folder, "npz", case, index)
    change(folders[1] / "a.npz")
    with pytest.raises((ProblemReport, DatasetError), match=said):
        average(folders, tmp_path / "out")


def test_a_label_map_of_another_ending_is_named(folders: list[Path], tmp_path: Path) -> None:
    for index, folder in enumerate(folders):
        save(folder, "npz", "a", index)
    (folders[0] / f"a{ENDING}").rename(folders[0] / "a.NII.gz")
    with pytest.raises(ProblemReport, match=r"found a\.NII\.gz"):
        average(folders, tmp_path / "out")


def test_two_runs_into_one_folder_wait_for_each_other(folders: list[Path], tmp_path: Path) -> None:
    for index, folder in enumerate(folders):
        save(folder, "npz", "a", index)
    held = locked(tmp_path / "out" / ".ensemble.lock", "averaging")
    with ThreadPoolExecutor(1) as pool:
        with held:
            second = pool.submit(average, folders, tmp_path / "out")
            with pytest.raises(TimeoutError):
                second.result(0.3)
        assert second.result(20) == [tmp_path / "out" / f"a{ENDING}"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"a{ENDING}"]
