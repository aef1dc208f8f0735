"""Files that are there but are no cases are named, with what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from segwright.core.errors import ProblemReport, WorkspaceError
from segwright.data.dataset import list_cases, load, usable_cases
from tests.unit.data import made_files

DICOM = bytes(128) + b"DICM"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_files.write_dataset(tmp_path / "Dataset007_Made", num_channels=1, num_cases=2)


def only(folder: Path, name: str) -> Path:
    """Leave one image, under another name, in a folder of images to predict."""
    images = folder / "imagesTr"
    (images / "case_01_0000.nii.gz").unlink()
    target = images / name
    target.parent.mkdir(exist_ok=True)
    (images / "case_00_0000.nii.gz").rename(target)
    return images


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("case.nii.gz", "found case.nii.gz, which lacks the channel number"),
        ("case_000.nii.gz", "found case_000.nii.gz, which lacks the channel number, which has four digits"),
        ("case_0000.nii", "found case_0000.nii, which ends in .nii, not in .nii.gz"),
        ("case_0000.NII.GZ", "found case_0000.NII.GZ, which ends in .NII.GZ, not in .nii.gz"),
        ("case_0000.nrrd", "found case_0000.nrrd, which ends in .nrrd, not in .nii.gz"),
        ("case_0000.nii.gz.nii.gz", "found case_0000.nii.gz.nii.gz, which has the ending .nii.gz twice"),
        ("case/case_0000.nii.gz", "found case, which is a folder that holds case/case_0000.nii.gz"),
        ("_0000.nii.gz", "which has no name before the channel number"),
        ("slice.dcm", "found slice.dcm, which is a DICOM file"),
        ("notes.txt", "found notes.txt; name the first channel _0000"),
    ],
)
def test_what_was_found_in_place_of_cases_is_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ProblemReport) as caught:
        list_cases(only(folder, name), ".nii.gz")
    assert message in str(caught.value)


def test_a_series_of_dicom_files_is_reported_once(folder: Path) -> None:
    images = only(folder, "x.txt")
    for index in range(20):
        (images / f"IM{index:04d}").write_bytes(DICOM)
    with pytest.raises(ProblemReport, match="found IM0000, which is a DICOM file; so do IM0001, IM0002, IM0003 and 16"):
        list_cases(images, ".nii.gz")


def test_a_file_in_place_of_a_folder_is_reported(folder: Path) -> None:
    image = folder / "imagesTr" / "case_00_0000.nii.gz"
    with pytest.raises(ProblemReport, match="is a file, expected its folder"):
        list_cases(image, ".nii.gz")


def test_files_beside_good_cases_are_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = folder / "imagesTr"
    for name in ("a_0000.NII.GZ", "b_0000.nrrd", "c.nii.gz", "readme.txt"):
        shutil.copy(images / "case_00_0000.nii.gz", images / name)
    assert len(list_cases(images, ".nii.gz")) == 2
    for name in ("a_0000.NII.GZ", "b_0000.nrrd", "c.nii.gz"):
        assert f"{name}: belongs to no case" in caplog.text
    assert "readme.txt" not in caplog.text


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("../.git/annex/objects/xx/MD5E-s9--0.nii.gz")


def _circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dangle, "is a link to ../.git/annex/objects/xx/MD5E-s9--0.nii.gz, which does not exist.*; fetch it with"),
        (_circle, "is a link to|cannot be accessed"),
        (_folder, "is a folder, expected a file"),
        (_pipe, "is a pipe, socket or device, expected a file"),
    ],
)
@pytest.mark.parametrize("name", ["imagesTr/case_01_0000.nii.gz", "labelsTr/case_01.nii.gz"])
def test_what_is_no_file_is_named_with_its_case(
    folder: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    change(folder / name)
    with pytest.raises(ProblemReport, match=message) as caught:
        load(folder)
    assert {problem.case for problem in caught.value.problems} == {"case_01"}


def test_the_other_cases_of_a_folder_can_be_predicted(folder: Path) -> None:
    _dangle(folder / "imagesTr" / "case_01_0000.nii.gz")
    cases, problems = usable_cases(folder / "imagesTr", ".nii.gz", 1)
    assert [case.identifier for case in cases] == ["case_00"]
    assert [problem.case for problem in problems] == ["case_01"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("case_01_0000.nii.gz", "found case_01_0000.nii.gz, but label maps have no channel number"),
        ("case_01.NII.GZ", "found case_01.NII.GZ, but images and labels must have the same file_ending"),
        ("case_01.nii", "found case_01.nii, but images and labels must have the same file_ending"),
    ],
)
def test_what_was_found_in_place_of_a_label_is_named(folder: Path, found: str, message: str) -> None:
    (folder / "labelsTr" / "case_01.nii.gz").rename(folder / "labelsTr" / found)
    with pytest.raises(ProblemReport, match=message):
        load(folder)


def test_names_whose_accents_are_encoded_in_two_ways_are_reported(folder: Path) -> None:
    (folder / "imagesTr" / "case_01_0000.nii.gz").rename(
        folder / "imagesTr" / normalize("NFC", "Gru\u0308n_0000.nii.gz")
    )
    (folder / "labelsTr" / "case_01.nii.gz").rename(folder / "labelsTr" / normalize("NFD", "Gru\u0308n.nii.gz"))
    with pytest.raises(ProblemReport, match="accents are encoded in another way"):
        load(folder)
    shutil.copy(folder / "imagesTr" / "case_00_0000.nii.gz", folder / "imagesTr" / "Gru\u0308n_0000.nii.gz")
    with pytest.raises(ProblemReport, match="appears twice, with accents encoded in two ways"):
        list_cases(folder / "imagesTr", ".nii.gz")


def test_a_folder_of_images_under_a_similar_name_is_found(folder: Path) -> None:
    (folder / "imagesTr").rename(folder / "ImagesTR")
    with pytest.raises(ProblemReport, match="imagesTr: no such folder; found ImagesTR"):
        load(folder)
    with pytest.raises(ProblemReport, match="deep: no such folder"):
        list_cases(folder / "nowhere" / "deep", ".nii.gz")


@pytest.mark.parametrize(
    "name", ["", "..", "sub-01/ses-1", "../../../../escaped", "/elsewhere/x", "a\nb", ".hidden", "x" * 201, "a\\b"]
)
def test_ids_that_are_no_file_names_are_refused_all_at_once(folder: Path, name: str) -> None:
    entry = {"images": ["imagesTr/case_00_0000.nii.gz"], "label": "labelsTr/case_00.nii.gz"}
    document = json.loads((folder / "dataset.json").read_text())
    made_files.edit_json(
        folder, {**document, "numTraining": 3, "dataset": {"fine": entry, name: entry, f"{name}/": entry}}
    )
    with pytest.raises(ProblemReport) as caught:
        load(folder)
    assert len(caught.value.problems) == 2
    assert all("case id" in str(problem) for problem in caught.value.problems)
    str(caught.value).encode()


@pytest.mark.parametrize("name", [b"Gr\xfcn", b"x" * 201])
def test_files_whose_names_cannot_be_ids_are_named(folder: Path, name: bytes) -> None:
    images = os.fsencode(folder / "imagesTr")
    os.rename(images + b"/case_01_0000.nii.gz", images + b"/" + name + b"_0000.nii.gz")
    cases, problems = usable_cases(folder / "imagesTr", ".nii.gz", 1)
    assert [case.identifier for case in cases] == ["case_00"]
    assert "is not UTF-8 text; rename it" in str(problems[0]) or "has 201 bytes, more than 200" in str(problems[0])
    str(problems[0]).encode()


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"Gr\xfcn")
    folder.mkdir()
    for act in (lambda: list_cases(folder, ".nii.gz"), lambda: load(folder)):
        with pytest.raises((WorkspaceError, ProblemReport), match="is not UTF-8 text; rename it"):
            act()
