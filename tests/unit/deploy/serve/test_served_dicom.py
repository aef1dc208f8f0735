"""Zipped DICOM studies of a running server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from running_server import Served

from dicom_phantom import write_series
from segwright import api
from segwright.deploy.serve.client import ServerError


def write_study(folder: Path) -> Path:
    array = np.random.default_rng(0).normal(100, 20, (9, 14, 11)).astype(np.int16)
    return write_series(folder, array)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A zip file with one series."""
    return Path(shutil.make_archive(str(tmp_path / "study"), "zip", write_study(tmp_path / "series")))


def test_the_label_map_of_a_study_is_that_of_predict(served: Served, study: Path, tmp_path: Path) -> None:
    [record] = api.predict(served.model, tmp_path / "series", tmp_path / "expected", device="cpu")
    served.client.predict([study], tmp_path / "labels.nii.gz")
    found, expected = (SimpleITK.ReadImage(str(file)) for file in (tmp_path / "labels.nii.gz", record.output))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(expected))
    assert found.GetOrigin() == expected.GetOrigin()
    assert SimpleITK.GetArrayFromImage(found).any()


@pytest.mark.parametrize(("output", "modality"), [("dicom-seg", "SEG"), ("rtstruct", "RTSTRUCT")])
def test_a_study_gives_dicom_objects(served: Served, study: Path, tmp_path: Path, output: str, modality: str) -> None:
    served.client.predict([study], tmp_path / "result.dcm", output=output)
    assert pydicom.dcmread(tmp_path / "result.dcm").Modality == modality
    assert list((served.jobs / "jobs").iterdir()) == []


def test_the_page_can_draw_a_study(served: Served, study: Path) -> None:
    job = served.client.submit([study], view="true")
    served.client.wait(job, poll_s=0.05)
    done = subprocess.run(["curl", "-sf", f"{served.address}/v1/jobs/{job}/view"], capture_output=True, check=True)
    assert b'"volume"' in done.stdout
    served.client.cancel(job)


def test_several_studies_are_refused(served: Served, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_study(tmp_path / "both" / name)
        for file in (tmp_path / "both" / name).iterdir():
            header = pydicom.dcmread(file)
            header.StudyInstanceUID = f"1.2.{ord(name)}"
            header.SeriesInstanceUID = f"1.2.3.{ord(name)}"
            header.save_as(file)
    file = shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "both")
    with pytest.raises(ServerError, match="2 DICOM studies") as refused:
        served.client.submit([file])
    assert refused.value.status == 422


def test_a_study_with_a_gap_is_refused(served: Served, study: Path, tmp_path: Path) -> None:
    sorted((tmp_path / "series").iterdir())[4].unlink()
    file = shutil.make_archive(str(tmp_path / "gap"), "zip", tmp_path / "series")
    with pytest.raises(ServerError, match="mm") as refused:
        served.client.submit([file])
    assert refused.value.status == 422
    assert str(served.jobs) not in str(refused.value)


def test_images_give_no_dicom_objects(served: Served) -> None:
    with pytest.raises(ServerError, match="a zip file of a DICOM study"):
        served.client.submit([served.image], output="dicom-seg")
