"""SEG and RTSTRUCT put every voxel where the label map has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_phantom import ORIENTATIONS, bundled_series, masks_of_contours, write_multiframe, write_series
from segwright.core.errors import ConfigError, ImageError
from segwright.data.labels import Labels
from segwright.deploy.dicom.codes import guess_segments
from segwright.deploy.dicom.objects import SourceModel
from segwright.deploy.dicom.rtstruct import Holes, plane_contours, write_rtstruct
from segwright.deploy.dicom.seg import write_seg
from segwright.deploy.dicom.series import Series, find_series

LABELS = Labels({"background": 0, "liver": 1, "liver_tumour": 2, "kidney_left": 3})
REGIONS = Labels({"background": 0, "whole": (1, 2), "tumour": 2}, (1, 2))
MODEL = SourceModel(name="Trainer__plans__3d", digest="ab" * 32)
SHAPE = (5, 9, 8)

Array = npt.NDArray[np.uint8]


def label_map(shape: tuple[int, ...] = SHAPE) -> Array:
    """Return noise: every way in which pixels can touch occurs."""
    return np.random.default_rng(0).integers(0, 4, shape, dtype=np.uint8)


def phantom(folder: Path, orientation: str = "axial", *, is_reversed: bool = False) -> Series:
    array = np.zeros(SHAPE, dtype=np.int16)
    [series] = find_series(write_series(folder, array, orientation=orientation, is_reversed=is_reversed)).series
    return series


def read_seg(file: Path, series: Series) -> npt.NDArray[np.bool_]:
    """Return the masks (*S, N) of a SEG at the positions of the voxels of its source."""
    volume = hd.seg.segread(file).get_volume(combine_segments=False)
    wanted = hd.Volume(np.zeros(series.shape), series.affine, "PATIENT")
    found: npt.NDArray[np.bool_] = volume.match_geometry(wanted).array.astype(bool)
    return found


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_seg_has_every_voxel_at_its_place(tmp_path: Path, orientation: str, is_reversed: bool) -> None:
    series = phantom(tmp_path / "in", orientation, is_reversed=is_reversed)
    labels = label_map()
    write_seg(labels, series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", series), labels[..., None] == [1, 2, 3])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("holes", ["xor", "keyhole"])
def test_contours_contain_the_voxels(tmp_path: Path, orientation: str, is_reversed: bool, holes: Holes) -> None:
    series = phantom(tmp_path / "in", orientation, is_reversed=is_reversed)
    labels = label_map()
    write_rtstruct(labels, series, guess_segments(LABELS), tmp_path / "rt.dcm", model=MODEL, holes=holes)
    masks = masks_of_contours(tmp_path / "rt.dcm", series)
    assert [*masks] == ["liver", "liver_tumour", "kidney_left"]
    assert np.array_equal(np.stack([*masks.values()], axis=-1), labels[..., None] == [1, 2, 3])


def test_results_of_an_enhanced_file_lie_at_its_frames(tmp_path: Path) -> None:
    [series] = find_series(write_multiframe(tmp_path / "ct", np.zeros(SHAPE), orientation="oblique")).series
    labels = label_map()
    write_seg(labels, series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    write_rtstruct(labels, series, guess_segments(LABELS), tmp_path / "rt.dcm", model=MODEL)
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", series), labels[..., None] == [1, 2, 3])
    masks = masks_of_contours(tmp_path / "rt.dcm", series)
    assert np.array_equal(np.stack([*masks.values()], axis=-1), labels[..., None] == [1, 2, 3])
    contour = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == (series.frames[0].index or 0) + 1


def test_overlapping_regions_are_segments_of_their_own(tmp_path: Path) -> None:
    series = phantom(tmp_path / "in")
    labels = label_map() % 3
    for write, name in ((write_seg, "seg.dcm"), (write_rtstruct, "rt.dcm")):
        write(labels, series, guess_segments(REGIONS), tmp_path / name, model=MODEL)
    expected = np.stack([labels > 0, labels == 2], axis=-1)
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", series), expected)
    masks = masks_of_contours(tmp_path / "rt.dcm", series)
    assert np.array_equal(np.stack([masks["whole"], masks["tumour"]], axis=-1), expected)


def test_an_empty_result_is_a_valid_object(tmp_path: Path) -> None:
    series = phantom(tmp_path / "in")
    empty = np.zeros(SHAPE, dtype=np.uint8)
    write_seg(empty, series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    write_rtstruct(empty, series, guess_segments(LABELS), tmp_path / "rt.dcm", model=MODEL)
    assert not read_seg(tmp_path / "seg.dcm", series).any()
    assert len(pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence) == 3
    assert not np.stack([*masks_of_contours(tmp_path / "rt.dcm", series).values()]).any()


def test_objects_say_who_made_them_of_what(tmp_path: Path) -> None:
    series = phantom(tmp_path / "in")
    source = pydicom.dcmread(series.files[0])
    write_seg(label_map(), series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    write_rtstruct(label_map(), series, guess_segments(LABELS), tmp_path / "rt.dcm", model=MODEL)
    seg, rtstruct = (pydicom.dcmread(tmp_path / name) for name in ("seg.dcm", "rt.dcm"))
    for each in (seg, rtstruct):
        for name in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
            assert each[name].value == source[name].value
        assert each.SeriesInstanceUID != source.SeriesInstanceUID
        assert each.SeriesNumber >= 900
        assert each.SeriesDescription == "Trainer__plans__3d (Segwright)"
        assert [*each.SoftwareVersions][1] == "model " + "ab" * 8
        assert each.DeviceSerialNumber == MODEL.digest
    assert seg.ContentDescription.startswith("Not a medical device")
    assert rtstruct.StructureSetDescription.startswith("Not a medical device")
    referenced = {
        item.ReferencedSOPInstanceUID
        for frame in seg.PerFrameFunctionalGroupsSequence
        for item in frame.DerivationImageSequence[0].SourceImageSequence
    }
    assert referenced == {frame.uid for frame in series.frames}
    kidney = seg.SegmentSequence[2]
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Left"
    assert seg.SegmentSequence[1].AnatomicRegionSequence[0].CodeMeaning == "Liver"


def test_attributes_that_were_removed_are_filled_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def anonymise(index: int, image: Dataset) -> None:
        for name in ("PatientID", "PatientName", "StudyID", "AccessionNumber", "FrameOfReferenceUID", "StudyDate"):
            delattr(image, name)

    array = np.zeros(SHAPE, dtype=np.int16)
    [series] = find_series(write_series(tmp_path / "in", array, change=anonymise)).series
    write_seg(label_map(), series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    write_rtstruct(label_map(), series, guess_segments(LABELS), tmp_path / "rt.dcm", model=MODEL)
    assert "PatientID, PatientName, StudyID, StudyDate, AccessionNumber, FrameOfReferenceUID missing" in caplog.text
    uids = {pydicom.dcmread(tmp_path / name).FrameOfReferenceUID for name in ("seg.dcm", "rt.dcm")}
    assert len(uids) == 1


@pytest.mark.parametrize("character_set", [None, "ISO_IR 100"])
def test_names_may_have_any_characters(tmp_path: Path, character_set: str | None) -> None:
    def change(index: int, image: Dataset) -> None:
        image.SpecificCharacterSet, image.PatientName = (
            character_set,
            "M\xfcller^Anna" if character_set else "Miller^Anna",
        )

    labels = Labels({"background": 0, "L\xe9sion \u809d": 1, "x" * 70: 2})
    array = np.zeros(SHAPE, dtype=np.int16)
    [series] = find_series(write_series(tmp_path / "in", array, change=change)).series
    for write, name in ((write_seg, "seg.dcm"), (write_rtstruct, "rt.dcm")):
        write(label_map() % 3, series, guess_segments(labels), tmp_path / name, model=MODEL)
    seg, rtstruct = (pydicom.dcmread(tmp_path / name) for name in ("seg.dcm", "rt.dcm"))
    names = ["L\xe9sion \u809d", "x" * 64]
    assert [each.SegmentLabel for each in seg.SegmentSequence] == names
    assert [each.ROIName for each in rtstruct.StructureSetROISequence] == names
    assert seg.PatientName == rtstruct.PatientName == pydicom.dcmread(series.files[0]).PatientName


def test_a_label_map_of_another_series_is_refused(tmp_path: Path) -> None:
    series = phantom(tmp_path / "in")
    for write in (write_seg, write_rtstruct):
        with pytest.raises(ImageError, match=r"shape \(4, 9, 8\): the series has \(5, 9, 8\)"):
            write(label_map((4, 9, 8)), series, guess_segments(LABELS), tmp_path / "x.dcm", model=MODEL)
    assert not (tmp_path / "x.dcm").exists()


def test_an_unknown_way_to_write_holes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holes 'both': expected xor or keyhole"):
        write_rtstruct(
            label_map(),
            phantom(tmp_path / "in"),
            guess_segments(LABELS),
            tmp_path / "rt.dcm",
            model=MODEL,
            holes="both",  # type: ignore[arg-type]
        )


def test_a_hole_is_a_contour_or_part_of_the_outer_one() -> None:
    ring = np.zeros((7, 7), dtype=bool)
    ring[1:6, 1:6] = True
    ring[3, 3] = False
    assert [len(plane_contours(ring, holes)) for holes in ("xor", "keyhole")] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [*ORIENTATIONS, "CT5N", "empty"])
def test_dciodvfy_finds_no_error(tmp_path: Path, orientation: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    if orientation == "CT5N":
        [series] = find_series(bundled_series("CT5N")).series
    else:
        series = phantom(tmp_path / "in", "axial" if orientation == "empty" else orientation)
    labels = label_map(series.shape) * (orientation != "empty")
    write_seg(labels, series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    write_rtstruct(labels, series, guess_segments(LABELS), tmp_path / "rt.dcm", model=MODEL)
    for name in ("seg.dcm", "rt.dcm"):
        done = subprocess.run(["dciodvfy", tmp_path / name], capture_output=True, text=True, check=False)
        assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [*ORIENTATIONS, "CT5N"])
def test_dcmqi_reads_every_voxel_at_its_place(tmp_path: Path, orientation: str) -> None:
    program = shutil.which("segimage2itkimage")
    if program is None:
        pytest.skip("segimage2itkimage is not installed (pip install dcmqi)")
    import SimpleITK

    if orientation == "CT5N":
        [series] = find_series(bundled_series("CT5N")).series
    else:
        series = phantom(tmp_path / "in", orientation)
    labels = label_map(series.shape)
    write_seg(labels, series, guess_segments(LABELS), tmp_path / "seg.dcm", model=MODEL)
    words = [program, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "-t", "nii", "-p", "x"]
    subprocess.run(words, capture_output=True, check=True)
    for value in (1, 2, 3):
        image = SimpleITK.ReadImage(tmp_path / f"x-{value}.nii.gz")
        found = set()
        for indices in np.argwhere(SimpleITK.GetArrayFromImage(image)):
            point = np.array([*image.TransformIndexToPhysicalPoint(indices[::-1].tolist()), 1])
            index = np.linalg.solve(series.affine, point)[:3]
            assert np.abs(index - index.round()).max() < 1e-2
            found.add(tuple(index.round().astype(int).tolist()))
        assert found == {tuple(index) for index in np.argwhere(labels == value).tolist()}
