"""Predicting one case whose files are given, instead of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from typer.testing import CliRunner

from segwright.cli.main import app
from segwright.core.errors import SegwrightError
from segwright.data.description import DatasetDescription
from segwright.inference.folder.inputs import find_cases

READER = "SimpleITKIO"


def description(*channels: str) -> DatasetDescription:
    names = {str(index): name for index, name in enumerate(channels)}
    return DatasetDescription.model_validate(
        {"channel_names": names, "labels": {"background": 0, "a": 1}, "numTraining": 1, "file_ending": ".nii.gz"}
    )


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
    for name in ("t1.nii.gz", "t2.nrrd", "x_0000.nii.gz", "x_0001.nii.gz", "y_0001.nii.gz", "y_0007.nii.gz", "z.nii"):
        sitk.WriteImage(image, str(tmp_path / name))
    for name in ("z.png", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "case"),
    [
        (["t1.nii.gz"], "t1"),
        (["t2.nrrd"], "t2"),
        (["x_0000.nii.gz"], "x"),
        (["y_0007.nii.gz"], "y_0007"),
        (["z.nii"], "z"),
        (["x_0000.nii.gz", "x_0001.nii.gz"], "x"),
        (["t1.nii.gz", "t2.nrrd"], "t1"),
    ],
)
def test_files_are_the_channels_of_one_case(scans: Path, names: list[str], case: str) -> None:
    files = [scans / name for name in names]
    [found], problems = find_cases(files, description(*names), READER)
    assert (found.identifier, found.images, problems) == (case, tuple(files), ())


@pytest.mark.parametrize(
    ("names", "num_channels", "message"),
    [
        (
            ["x_0000.nii.gz"],
            2,
            r"1 channel of one case, the model needs 2 \(c0, c1\); give one file for each channel in",
        ),
        (["x_0000.nii.gz", "y_0001.nii.gz"], 1, r"2 channels of one case, the model needs 1 \(c0\); for several cases"),
        (["x_0000.nii.gz", "y_0001.nii.gz"], 2, "files of 2 cases; give those of one, or a folder"),
        (["x_0001.nii.gz", "x_0000.nii.gz"], 2, "the channels are not in the order of their numbers; sort them"),
        ([], 1, "the list of image files is empty"),
        (["z.png"], 1, r"z\.png: "),
        (["notes.txt"], 1, r"notes\.txt: is no image file; the model was trained with \.nii\.gz files, convert it"),
        (["none.nii.gz"], 1, r"none\.nii\.gz: no such file; correct the path"),
        ([".", "t1.nii.gz"], 2, "is a folder, expected a file; give one folder, or the files of one case"),
    ],
)
def test_files_that_are_no_case_are_refused(scans: Path, names: list[str], num_channels: int, message: str) -> None:
    channels = description(*(f"c{index}" for index in range(num_channels)))
    with pytest.raises(SegwrightError, match=message):
        find_cases([scans / name for name in names], channels, READER)


def test_a_file_is_predicted_as_in_its_folder(
    make_model: Callable[..., Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*words: object) -> tuple[int, str]:
        fixed = ("--device", "cpu", "--precision", "fp32")
        done = CliRunner().invoke(app, [str(word) for word in ("predict", "-m", make_model(0), *words, *fixed)])
        return done.exit_code, done.stderr

    assert predict("-i", images, "-o", tmp_path / "all")[0] == 0
    assert predict("-i", images / "a_0000.nii.gz", "-o", tmp_path / "one")[0] == 0
    assert not (tmp_path / "one" / "b.nii.gz").exists()
    one, of_folder = (sitk.ReadImage(str(tmp_path / name / "a.nii.gz")) for name in ("one", "all"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(of_folder))
    code, error = predict("-i", images / "a_0000.nii.gz", "-o", tmp_path / "one", "--step-size", "0.25")
    assert (code, "holds predictions of another model" in error) == (1, True)
    assert predict("-i", images / "a_0000.nii.gz", "-o", tmp_path / "fine", "--step-size", "0.25")[0] == 0
    assert json.loads((tmp_path / "fine" / "prediction.json").read_text())["model"]["step"] == 0.25
    for out, message in ((images, "never written to"), (tmp_path / "a.nii.gz", "expected a folder")):
        code, error = predict("-i", images / "a_0000.nii.gz", "-o", out)
        assert (code, message in error, error.count("\n")) == (1, True, 1)
