"""Series with SEG and RTSTRUCT objects become a raw dataset, to the voxel."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon

from dicom_phantom import ORIENTATIONS, write_series
from segwright.api.datasets.converting import convert
from segwright.core.errors import ConfigError, ProblemReport
from segwright.data.checks import check
from segwright.data.labels import Labels
from segwright.deploy.dicom.annotations import fill_contours
from segwright.deploy.dicom.codes import guess_segments
from segwright.deploy.dicom.objects import SourceModel
from segwright.deploy.dicom.rtstruct import write_rtstruct
from segwright.deploy.dicom.seg import write_seg
from segwright.deploy.dicom.series import find_series

LABELS = Labels({"background": 0, "GTV-1": 1, "Liver": 2})
MODEL = SourceModel(name="m", digest="ab" * 32)
SHAPE = (5, 9, 8)
WRITERS = {"seg": write_seg, "rtstruct": write_rtstruct}


def labels_of(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, SHAPE, dtype=np.uint8)


def write_case(folder: Path, seed: int, kind: str = "seg", orientation: str = "axial") -> npt.NDArray[np.uint8]:
    """Write a patient's folder with a series and an object; return its label map."""
    array = np.random.default_rng(seed).integers(-1000, 1000, SHAPE)
    images = write_series(folder / "ct", array, study=f"1.2.{seed}", orientation=orientation)
    [series] = find_series(images).series
    (folder / "object").mkdir()
    WRITERS[kind](labels_of(seed), series, guess_segments(LABELS), folder / "object" / f"{kind}.dcm", model=MODEL)
    return labels_of(seed)


def stored(file: Path) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[np.uint8] = np.asarray(nibabel.load(file).dataobj).T
    return found


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_dataset_has_every_voxel_at_its_place(tmp_path: Path, kind: str, orientation: str) -> None:
    expected = {f"p{seed}": write_case(tmp_path / "in" / f"p{seed}", seed, kind, orientation) for seed in (1, 2)}
    new = tmp_path / "Dataset001_New"
    converted = convert("dicom", tmp_path / "in", new)
    assert converted is not None
    assert converted.num_written == 4
    document = json.loads((new / "dataset.json").read_text())
    assert document["channel_names"] == {"0": "CT"}
    assert document["labels"] == {"background": 0, "GTV-1": 1, "Liver": 2}
    for name, labels in expected.items():
        assert np.array_equal(stored(new / "labelsTr" / f"{name}.nii.gz"), labels)
        image = nibabel.load(new / "imagesTr" / f"{name}_0000.nii.gz")
        assert np.array_equal(image.affine, nibabel.load(new / "labelsTr" / f"{name}.nii.gz").affine)
    assert not check(new).errors
    again = convert("dicom", tmp_path / "in", new)
    assert again is not None
    assert (again.num_written, again.num_kept) == (0, 4)


def test_cases_of_one_folder_stay_in_one_fold(tmp_path: Path) -> None:
    for folder, seed in (("p1/first", 1), ("p1/second", 2), ("p2", 3)):
        write_case(tmp_path / "in" / folder, seed)
    convert("dicom", tmp_path / "in", tmp_path / "new")
    groups = json.loads((tmp_path / "new" / "dataset.json").read_text())["groups"]
    assert groups == {"p1_1": "p1", "p1_2": "p1", "p2": "p2"}
    assert np.array_equal(stored(tmp_path / "new" / "labelsTr" / "p1_2.nii.gz"), labels_of(2))


def test_names_are_mapped_and_others_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = write_case(tmp_path / "in" / "p1", 1)
    convert("dicom", tmp_path / "in", tmp_path / "new", names=["gtv*=tumour"])
    assert json.loads((tmp_path / "new" / "dataset.json").read_text())["labels"] == {"background": 0, "tumour": 1}
    assert np.array_equal(stored(tmp_path / "new" / "labelsTr" / "p1.nii.gz"), labels == 1)
    assert "left out: Liver" in caplog.text


def test_labels_have_the_order_of_the_names(tmp_path: Path) -> None:
    labels = write_case(tmp_path / "in" / "p1", 1)
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"Liver": "liver", "GTV-1": "tumour"}))
    convert("dicom", tmp_path / "in", tmp_path / "new", names=[str(file)])
    assert np.array_equal(stored(tmp_path / "new" / "labelsTr" / "p1.nii.gz"), np.array([0, 2, 1])[labels])


def test_an_object_of_another_grid_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "in" / "p1", 1)
    file = tmp_path / "in" / "p1" / "object" / "seg.dcm"
    dataset = pydicom.dcmread(file)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        position.ImagePositionPatient = [value + 0.5 for value in position.ImagePositionPatient]
    dataset.save_as(file)
    with pytest.raises(ProblemReport, match=r"seg\.dcm: its voxels lie between those of the series"):
        convert("dicom", tmp_path / "in", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_contours_between_slices_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "in" / "p1", 1, "rtstruct")
    file = tmp_path / "in" / "p1" / "object" / "rtstruct.dcm"
    dataset = pydicom.dcmread(file)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [value + 1.5 * (index % 3 == 2) for index, value in enumerate(contour.ContourData)]
    dataset.save_as(file)
    with pytest.raises(ProblemReport, match="a contour does not lie on a plane of the series"):
        convert("dicom", tmp_path / "in", tmp_path / "new")


def test_an_object_whose_series_is_missing_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "in" / "p1", 1)
    for image in (tmp_path / "in" / "p1" / "ct").iterdir():
        image.unlink()
    with pytest.raises(ProblemReport, match=r"seg\.dcm: the series that it refers to is not in the folder"):
        convert("dicom", tmp_path / "in", tmp_path / "new")


def test_two_objects_with_one_label_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "in" / "p1", 1)
    [series] = find_series(tmp_path / "in" / "p1" / "ct").series
    write_rtstruct(labels_of(2), series, guess_segments(LABELS), tmp_path / "in" / "p1" / "rt.dcm", model=MODEL)
    with pytest.raises(ProblemReport, match="several objects outline 'GTV-1'"):
        convert("dicom", tmp_path / "in", tmp_path / "new")


def test_unusable_names_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "in" / "p1", 1)
    with pytest.raises(ConfigError, match="--names: 'GTV-1'; expected KEY=VALUE"):
        convert("dicom", tmp_path / "in", tmp_path / "new", names=["GTV-1"])
    with pytest.raises(ProblemReport, match="no object has a name of --names, found: GTV-1, Liver"):
        convert("dicom", tmp_path / "in", tmp_path / "new", names=["heart=heart"])
    with pytest.raises(ConfigError, match="names: only for the format 'dicom'"):
        convert("msd", tmp_path / "in", tmp_path / "new", names=["a=b"])


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_every_kind_of_seg_is_read(tmp_path: Path, kind: str) -> None:
    write_case(tmp_path / "in" / "p1", 1)
    file = tmp_path / "in" / "p1" / "object" / "seg.dcm"
    [series] = find_series(tmp_path / "in" / "p1" / "ct").series
    labels = labels_of(3)
    pixels = np.stack([labels == 1, labels == 2], axis=-1) * np.float32(0.9) if kind == "FRACTIONAL" else labels
    segments = [hd.seg.SegmentDescription.from_dataset(each) for each in pydicom.dcmread(file).SegmentSequence]
    sources = [pydicom.dcmread(image) for image in series.files]
    seg = hd.seg.Segmentation(
        *(sources, pixels, kind, segments),
        **{"series_instance_uid": hd.UID(), "sop_instance_uid": hd.UID(), "series_number": 1, "instance_number": 1},
        **{"manufacturer": "m", "manufacturer_model_name": "m", "software_versions": "1", "device_serial_number": "1"},
    )
    seg.save_as(file)
    convert("dicom", tmp_path / "in", tmp_path / "new")
    assert np.array_equal(stored(tmp_path / "new" / "labelsTr" / "p1.nii.gz"), labels)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(3, 9), st.just(2)), elements=st.floats(-2, 9, width=16)))
def test_contours_are_filled_by_the_even_odd_rule(points: npt.NDArray[np.float64]) -> None:
    points = points + np.array([0.123456789, 0.045678912])  # no edge goes through the centre of a pixel
    rows, columns = np.mgrid[:7, :7]
    centres = np.stack([rows.ravel(), columns.ravel()], axis=1)
    inside = np.zeros(len(centres), dtype=bool)
    for start, stop in zip(points, np.roll(points, -1, axis=0), strict=True):
        crosses = (start[0] <= centres[:, 0]) != (stop[0] <= centres[:, 0])
        with np.errstate(divide="ignore", invalid="ignore"):
            column = start[1] + (centres[:, 0] - start[0]) / (stop[0] - start[0]) * (stop[1] - start[1])
        inside ^= crosses & (column < centres[:, 1])
    assert np.array_equal(fill_contours([points], (7, 7)).ravel(), inside)


def test_contours_of_a_circle_agree_with_matplotlib() -> None:
    angles = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    circle = 10 + 7.3 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.mgrid[:20, :20]
    centres = np.stack([rows.ravel(), columns.ravel()], axis=1)
    expected = Polygon(np.concatenate([circle, circle[:1]])).contains_points(centres).reshape(20, 20)
    assert np.array_equal(fill_contours([circle], (20, 20)), expected)
