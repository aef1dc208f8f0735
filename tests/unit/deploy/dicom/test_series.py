"""Series are found by headers and sorted by position; what is no volume is refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_phantom import ORIENTATIONS, SPACING, Change, bundled_series, write_multiframe, write_series
from segwright.core.errors import ImageError, ProblemReport
from segwright.deploy.dicom.reading import read_voxels, write_nifti
from segwright.deploy.dicom.series import find_series

ARRAY = np.arange(5 * 4 * 3).reshape(5, 4, 3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_slices_are_sorted_by_position(tmp_path: Path, orientation: str, is_reversed: bool) -> None:
    folder = write_series(tmp_path, ARRAY, orientation=orientation, is_reversed=is_reversed)
    [series] = find_series(folder).series
    assert np.array_equal(read_voxels(series), ARRAY)
    assert np.allclose(series.spacing, SPACING)
    assert np.allclose(series.affine[:3, 3], [-10, 20, 5])
    assert np.allclose(series.affine[:3, 2], np.multiply(ORIENTATIONS[orientation][:3], SPACING[2]), atol=1e-6)


def test_a_nifti_file_has_the_grid_of_the_series(tmp_path: Path) -> None:
    [series] = find_series(write_series(tmp_path / "in", ARRAY, orientation="oblique")).series
    write_nifti(series, tmp_path / "x.nii")
    image = nibabel.load(tmp_path / "x.nii")
    to_ras = np.diag([-1, -1, 1, 1])
    assert np.allclose(image.affine, (to_ras @ series.affine)[:, [2, 1, 0, 3]], atol=1e-5)
    assert np.array_equal(np.asarray(image.dataobj).T, ARRAY)


def test_the_rescale_slope_of_each_slice_counts(tmp_path: Path) -> None:
    def scale(index: int, image: Dataset) -> None:
        image.RescaleSlope, image.RescaleIntercept = 0.5 + index, -1000.5

    [series] = find_series(write_series(tmp_path, ARRAY, change=scale)).series
    expected = ARRAY * (0.5 + np.arange(5))[:, None, None] - 1000.5
    assert np.allclose(read_voxels(series), expected)


def test_frames_of_an_enhanced_file_are_sorted_and_scaled(tmp_path: Path) -> None:
    [series] = find_series(write_multiframe(tmp_path / "ct", ARRAY, orientation="oblique")).series
    index = np.arange(5)[:, None, None]
    assert np.allclose(read_voxels(series), ARRAY * (index + 1) - index)
    assert np.allclose(series.spacing, SPACING)


def test_series_of_a_wheel_are_read_or_refused() -> None:
    [series] = find_series(bundled_series("CT5N")).series
    assert (series.shape, series.spacing[0]) == ((5, 16, 16), 2.5)
    [gap], [mixed] = (find_series(bundled_series(name)).refused for name in ("CT2", "MR700"))
    assert gap.reason.startswith("has a gap: 202.50 mm between slices 1 and 2 of 4, usually 1.25 mm")
    assert mixed.reason.startswith("has mixed orientations (4 oblique sagittal and 2 oblique coronal and 1 coronal")


def gap(index: int, image: Dataset) -> None:
    image.ImagePositionPatient[2] += 3 * (index > 3)


def tilt(index: int, image: Dataset) -> None:
    image.ImagePositionPatient[1] += index


def sideways(index: int, image: Dataset) -> None:
    image.ImagePositionPatient[0] += index == 2


def uneven(index: int, image: Dataset) -> None:
    image.ImagePositionPatient[2] += 0.5 * (index == 2)


def twice(index: int, image: Dataset) -> None:
    image.ImagePositionPatient[2] = 3 * (index // 2)
    image.AcquisitionNumber = index % 2


def mixed(index: int, image: Dataset) -> None:
    if index == 2:
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def localizer(index: int, image: Dataset) -> None:
    if index == 2:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def coloured(index: int, image: Dataset) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.PixelData = image.PixelData * 3


def other_size(index: int, image: Dataset) -> None:
    if index == 2:
        image.Rows, image.Columns = image.Columns, image.Rows


def without_position(index: int, image: Dataset) -> None:
    del image.ImagePositionPatient


def other_pixels(index: int, image: Dataset) -> None:
    image.PixelSpacing = [0.8, 1.2 + 0.1 * index]


def cut_off(index: int, image: Dataset) -> None:
    image.PixelData = image.PixelData[:-2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (gap, "has a gap: 6.00 mm between slices 4 and 5 of 5, usually 3.00 mm"),
        (tilt, "has a gantry tilt of 18.4 degrees"),
        (sideways, "its slices are shifted sideways against each other"),
        (uneven, "is not evenly spaced: distances from 2.50 to 3.50 mm"),
        (twice, "has several acquisitions at one position (5 images at 3 positions, Acquisition Numbers 0, 1"),
        (mixed, "has mixed orientations (4 axial and 1 sagittal images; "),
        (localizer, "1 of 5 images are localizers, first IM0003"),
        (coloured, "IM0001 has 3 values per pixel, a colour picture"),
        (other_size, "its images have different sizes: 4 of 4 x 3, 1 of 3 x 4"),
        (without_position, "IM0001 has no Image Position (Patient)"),
        (other_pixels, "has different pixel spacings: 0.8 x 1.2 mm in IM0001, 0.8 x 1.3 mm in IM0002"),
        (cut_off, "IM0001 is cut off: 22 of 24 bytes of its pixels are left"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_what_is_no_volume_is_refused_with_the_reason(tmp_path: Path, change: Change, reason: str) -> None:
    found = find_series(write_series(tmp_path, ARRAY, change=change))
    assert not found.series
    [refused] = found.refused
    assert refused.reason.startswith(reason)
    assert not refused.is_other


@pytest.mark.parametrize(
    ("sop_class", "image_type", "reason"),
    [
        ("1.2.840.10008.5.1.4.1.1.7", "AXIAL", "is a secondary capture (a screen shot or a derived picture)"),
        ("1.2.840.10008.5.1.4.1.1.20", "AXIAL", "is a nuclear medicine (NM) image"),
        ("1.2.840.10008.5.1.4.1.1.2", "LOCALIZER", "is a localizer"),
    ],
)
def test_pictures_of_other_kinds_do_not_count(tmp_path: Path, sop_class: str, image_type: str, reason: str) -> None:
    def change(index: int, image: Dataset) -> None:
        image.SOPClassUID, image.ImageType = sop_class, ["ORIGINAL", "PRIMARY", image_type]

    [refused] = find_series(write_series(tmp_path, ARRAY, change=change)).refused
    assert refused.is_other
    assert refused.reason.startswith(reason)


def test_positions_may_be_rounded(tmp_path: Path) -> None:
    def change(index: int, image: Dataset) -> None:
        image.ImagePositionPatient = [round(float(value), 1) for value in image.ImagePositionPatient]

    folder = write_series(tmp_path, ARRAY, spacing=(3.33, 0.8, 1.2), change=change)
    [series] = find_series(folder).series
    assert series.spacing[0] == pytest.approx(3.325)


def test_copies_of_an_image_are_left_out(tmp_path: Path) -> None:
    shutil.copy(write_series(tmp_path, ARRAY) / "IM0002", tmp_path / "copy.dcm")
    [series] = find_series(tmp_path).series
    assert series.shape == ARRAY.shape
    assert series.notes == ("1 files are copies of other ones and left out, first copy.dcm",)


def test_other_files_and_a_dicomdir_are_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    shutil.copy(bundled_series("CT5N").parents[1] / "DICOMDIR", tmp_path)
    (tmp_path / "README.txt").write_text("a CD")
    (tmp_path / "._IM0001").write_bytes(bytes(128) + b"DICM")
    assert len(find_series(tmp_path).series) == 1


def problem_of_folder(folder: Path) -> str:
    try:
        [refused] = find_series(folder).refused
    except ProblemReport as report:
        return str(report)
    return refused.reason


@pytest.mark.parametrize("length", range(140, 900, 40))
def test_a_file_that_is_cut_off_anywhere_is_found(tmp_path: Path, length: int) -> None:
    last = write_series(tmp_path, ARRAY) / "IM0005"  # without it the others are a volume
    last.write_bytes(last.read_bytes()[:length])
    assert "IM0005" in problem_of_folder(tmp_path).split(" ")[0]


def test_a_garbled_header_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    last = write_series(tmp_path, ARRAY) / "IM0005"
    last.write_bytes(bytes(128) + b"DICM" + b"\xff" * 500)
    with pytest.raises(ProblemReport, match="IM0005: "):
        find_series(tmp_path)


def test_pixels_that_nothing_decodes_are_an_error_with_the_missing_package(tmp_path: Path) -> None:
    def compress(index: int, image: Dataset) -> None:
        from pydicom.encaps import encapsulate
        from pydicom.uid import HTJ2KLossless

        image.file_meta.TransferSyntaxUID = HTJ2KLossless
        image.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(20)])
        image["PixelData"].is_undefined_length = True

    [series] = find_series(write_series(tmp_path, ARRAY, change=compress)).series
    with pytest.raises(ImageError, match=r"IM000\d: its pixels cannot be decoded .*pylibjpeg"):
        read_voxels(series)


def test_a_series_whose_uids_were_removed_is_one_series(tmp_path: Path) -> None:
    def anonymise(_: int, image: Dataset) -> None:
        image.StudyInstanceUID = image.SeriesInstanceUID = image.SOPInstanceUID = image.SOPClassUID = ""

    folders = [write_series(tmp_path / name, ARRAY, change=anonymise) for name in ("one", "two")]
    [first] = find_series(folders[0]).series
    assert first.shape == ARRAY.shape
    assert first.info.uid
    assert first.info.study_uid
    assert find_series(folders[0]).series[0].info == first.info
    assert len(find_series(tmp_path).series) == 2


def test_a_real_series_without_uids_lies_where_its_labels_do() -> None:
    scans = Path(__file__).parents[4].parent / "shared" / "data" / "example_scans"
    if not scans.is_dir():
        pytest.skip(f"needs {scans}")
    [series] = find_series(scans / "example_ct_dicom").series
    labels = nibabel.load(scans / "example_seg_dicom.nii.gz")
    corners = np.array([[0, 0, 0, 1], [series.shape[0] - 1, series.shape[1] - 1, series.shape[2] - 1, 1]]).T
    to_ras = np.diag([-1, -1, 1, 1]) @ series.affine
    found = np.linalg.inv(labels.affine) @ to_ras @ corners
    assert np.abs(np.sort(found[:3]) - [[0, n - 1] for n in labels.shape]).max() < 0.01
    assert read_voxels(series).min() == -1024
