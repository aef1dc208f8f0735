"""Each case gets the right series, or an error that lists them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_phantom import write_series
from segwright.core.errors import ConfigError, ImageError, ProblemReport
from segwright.deploy.dicom.choosing import find_dicom_cases
from segwright.deploy.dicom.sources import is_dicom_input, opened

ARRAY = np.zeros((3, 4, 5))


def write_study(folder: Path, *descriptions: str, study: str = "1.2.3") -> Path:
    for number, text in enumerate(descriptions, start=1):
        write_series(folder / f"s{number}", ARRAY, study=study, description=text, number=number)
    return folder


def chosen(folder: Path, channels: tuple[str, ...], *series: str) -> list[str]:
    [case], _ = find_dicom_cases(folder, channels=channels, series=series)
    return [each.info.description for each in case.channels]


def test_channels_are_found_by_their_names(tmp_path: Path) -> None:
    study = write_study(tmp_path, "ax T1 mprage", "ax T1c mprage", "FLAIR-cor", "T2_tse")
    assert chosen(study, ("T1", "T1c", "flair", "T2")) == ["ax T1 mprage", "ax T1c mprage", "FLAIR-cor", "T2_tse"]


@pytest.mark.parametrize("series", [("3", "1"), ("FLAIR=b*", "T1=1"), ("1.2.3.3", "1.2.3.1"), ("b1", "A 1")])
def test_channels_are_chosen(tmp_path: Path, series: tuple[str, ...]) -> None:
    study = write_study(tmp_path, "a 1", "c 1", "b1")
    channels = ("FLAIR", "T1")
    expected = ["b1", "a 1"]
    assert chosen(study, channels, *series) == expected


def test_channels_are_chosen_by_a_file(tmp_path: Path) -> None:
    study = write_study(tmp_path / "in", "a 1", "b 1")
    file = tmp_path / "channels.json"
    file.write_text(json.dumps({"T1": "b*", "FLAIR": 1}))
    assert chosen(study, ("FLAIR", "T1"), str(file)) == ["a 1", "b 1"]


@pytest.mark.parametrize(
    ("channels", "series", "message"),
    [
        (("CT",), (), "2 series may be the image: series number 1, 'a 1'"),
        (("CT",), ("*1",), r"2 series may be '\*1'"),
        (("CT",), ("head",), "no series is 'head', found: series number 1, 'a 1'"),
        (("T1", "T2"), (), "no series is channel 'T1', found"),
        (("T1", "T2"), ("1", "1"), "two channels are the same series"),
        (("T1", "T2"), ("1",), "1 given, the model has 2 channels"),
        (("T1", "T2"), ("T1=1",), "'T2'; expected one series for each of the channels T1, T2"),
    ],
)
def test_what_is_not_certain_is_an_error(
    tmp_path: Path, channels: tuple[str, ...], series: tuple[str, ...], message: str
) -> None:
    study = write_study(tmp_path, "a 1", "b 1")
    with pytest.raises((ProblemReport, ConfigError), match=message):
        find_dicom_cases(study, channels=channels, series=series)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, "T1")
    write_series(tmp_path / "s2", np.zeros((3, 4, 6)), description="T2", number=2)
    with pytest.raises(ProblemReport, match=r"different grids: .* has shape \(3, 4, 5\), .* has shape \(3, 4, 6\)"):
        find_dicom_cases(tmp_path, channels=("T1", "T2"))


def test_a_refused_series_is_not_replaced_by_another(tmp_path: Path) -> None:
    def gap(index: int, image: Dataset) -> None:
        image.ImagePositionPatient[2] += 9 * (index == 2)

    write_study(tmp_path, "a")
    write_series(tmp_path / "s2", ARRAY, description="b", number=2, change=gap)
    with pytest.raises(ProblemReport, match="2 series may be the image: .*has a gap"):
        find_dicom_cases(tmp_path, channels=("CT",))
    with pytest.raises(ProblemReport, match="'b', CT, 3 images, UID 1.2.3.2: has a gap"):
        find_dicom_cases(tmp_path, channels=("CT",), series=("2",))


def test_studies_are_cases_named_after_their_folders(tmp_path: Path) -> None:
    for study, folder in (("1.2.1", "anna b/s"), ("1.2.2", "carl/first"), ("1.2.3", "carl/second")):
        write_study(tmp_path / folder, "a", "b", study=study)
    cases, problems = find_dicom_cases(tmp_path, channels=("CT",), series=("A",))
    assert {case.identifier: case.channels[0].info.study_uid for case in cases} == {
        "anna_b": "1.2.1",
        "carl_1": "1.2.2",
        "carl_2": "1.2.3",
    }
    assert not problems
    [only], _ = find_dicom_cases(tmp_path / "anna b", channels=("CT",), series=("A",))
    assert only.identifier == "anna_b"


def test_a_file_is_a_case(tmp_path: Path) -> None:
    file = write_study(tmp_path, "a") / "s1" / "IM0001"
    [case], _ = find_dicom_cases(file.rename(tmp_path / "x.dcm"), channels=("CT",))
    assert (case.identifier, case.channels[0].shape) == ("x", (1, 4, 5))


def test_a_folder_with_images_is_not_dicom(tmp_path: Path) -> None:
    write_study(tmp_path, "a")
    assert is_dicom_input(tmp_path, ".nii.gz")
    (tmp_path / "x_0000.nii.gz").touch()
    assert not is_dicom_input(tmp_path, ".nii.gz")
    (tmp_path / "empty").mkdir()
    assert not is_dicom_input(tmp_path / "empty", ".nii.gz")
    assert not is_dicom_input(tmp_path / "nothing", ".nii.gz")


def test_an_unusable_zip_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    file.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ImageError, match=r"x\.zip: not a readable zip file"), opened(file):
        pass
    with pytest.raises(ImageError, match=r"nothing\.zip: no such file"), opened(tmp_path / "nothing.zip"):
        pass
