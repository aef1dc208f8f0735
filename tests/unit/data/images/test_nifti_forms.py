"""A label map in NIfTI lies where the image lies, in the words of its header; the header's units are obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from segwright.data.images.image_io import read_header, read_images, read_label, write_labels
from segwright.data.images.orientation import lateral_axis

READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
TURNED = np.array([[0, 0, 2.5, -5], [0.9, 0, 0, 4.5], [0, -0.8, 0, 3], [0, 0, 0, 1]])
ELSEWHERE = TURNED + np.array([[0, 0, 0, 10], [0, 0, 0, -5], [0, 0, 0, 3], [0, 0, 0, 0]])


def write_image(file: Path, *, codes: tuple[int, int], unit: str = "mm") -> np.ndarray[Any, Any]:
    array = np.random.RandomState(3).randint(0, 9, (5, 6, 7)).astype(np.int16)
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((0.9, 0.8, 2.5))
    image.set_qform(TURNED, code=codes[0] or 1)
    image.set_sform(ELSEWHERE, code=codes[1] or 1)
    image.header["qform_code"], image.header["sform_code"] = codes
    image.header.set_xyzt_units(xyz=unit)
    nibabel.save(image, file)
    return array


def forms(file: Path) -> dict[str, Any]:
    header = nibabel.load(file).header
    names = ["qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"]
    names += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"]
    return {"pixdim": header["pixdim"][:4].tolist(), **{name: header[name].tolist() for name in names}}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codes", [(1, 2), (1, 0), (0, 1), (0, 0), (2, 2)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_both_forms_codes_and_unit_of_the_image_are_kept(
    tmp_path: Path, ending: str, codes: tuple[int, int], reader: str
) -> None:
    file, target = tmp_path / f"image{ending}", tmp_path / f"label{ending}"
    array = write_image(file, codes=codes, unit="micron")
    volume = read_images([file], reader)
    labels = (volume.array[0] > 4).astype(np.int64)

    write_labels(labels, target, json.loads(json.dumps(volume.properties)), reader)

    assert forms(target) == forms(file)
    np.testing.assert_array_equal(np.asarray(nibabel.load(target).dataobj), array > 4)
    written = read_label(target, reader)
    np.testing.assert_array_equal(written.array[0], labels)
    assert written.properties == volume.properties


def test_forms_are_those_of_the_first_channel(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", codes=(1, 2))
    write_image(tmp_path / "b.nii.gz", codes=(2, 2))

    volume = read_images([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"], "SimpleITKIO")
    write_labels(np.zeros((7, 6, 5), np.uint8), tmp_path / "label.nii.gz", volume.properties, "SimpleITKIO")

    assert forms(tmp_path / "label.nii.gz") == forms(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("unit", "factor"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0), ("unknown", 1.0)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_spacing_is_in_mm_whatever_the_unit_of_the_header(
    tmp_path: Path, ending: str, unit: str, factor: float, reader: str
) -> None:
    write_image(tmp_path / f"image{ending}", codes=(1, 1), unit=unit)

    header = read_header(tmp_path / f"image{ending}", reader)

    assert sorted(header.spacing) == pytest.approx([0.8 * factor, 0.9 * factor, 2.5 * factor], rel=1e-6)
    if "affine" in header.geometry:
        lengths = np.linalg.norm(np.array(header.geometry["affine"])[:3, :3], axis=0)
        assert sorted(lengths) == pytest.approx(sorted(header.spacing), rel=1e-6)


@pytest.mark.parametrize("reader", ["NibabelIO", "SimpleITKIO"])
def test_properties_that_an_earlier_version_kept_are_still_written(tmp_path: Path, reader: str) -> None:
    write_image(tmp_path / "image.nii.gz", codes=(1, 1))
    volume = read_images([tmp_path / "image.nii.gz"], reader)
    kept = {key: value for key, value in volume.properties["geometry"].items() if key != "nifti"}

    write_labels(np.zeros((7, 6, 5), np.uint8), tmp_path / "o.nii.gz", {**volume.properties, "geometry": kept}, reader)

    assert read_header(tmp_path / "o.nii.gz", reader).spacing == pytest.approx(volume.spacing)


def test_2d_image_keeps_its_forms_and_tells_no_side(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(20, dtype=np.int16).reshape(4, 5))
    image.SetSpacing((0.5, 0.25))
    SimpleITK.WriteImage(image, str(tmp_path / "flat.nii.gz"))
    volume = read_images([tmp_path / "flat.nii.gz"], "SimpleITKIO")

    write_labels(np.ones((1, 4, 5), np.uint8), tmp_path / "o.nii.gz", volume.properties, "SimpleITKIO")

    assert forms(tmp_path / "o.nii.gz") == forms(tmp_path / "flat.nii.gz")
    assert nibabel.load(tmp_path / "o.nii.gz").shape == nibabel.load(tmp_path / "flat.nii.gz").shape
    assert lateral_axis(tmp_path / "flat.nii.gz", "SimpleITKIO") is None
