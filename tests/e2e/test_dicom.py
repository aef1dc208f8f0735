"""A DICOM folder or zip file is predicted as the same images in NIfTI are, and the results lie at the same voxels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from journeys import Journey, call, states
from pydicom.dataset import Dataset

import segwright
from dicom_phantom import ORIENTATIONS, masks_of_contours, no_change, write_series
from segwright.core.errors import ConfigError
from segwright.deploy.dicom.reading import write_nifti
from segwright.deploy.dicom.series import find_series
from segwright.workspace import SEGMENTS_JSON

BOTH = ("--output-type", "dicom-seg,rtstruct")


def phantom_image(journey: Journey) -> npt.NDArray[np.int16]:
    [image, *_] = sorted((journey.dataset / "imagesTs").glob("*.nii.gz"))
    found: npt.NDArray[np.int16] = np.asarray(nibabel.load(image).dataobj).T.round().astype(np.int16)
    return found


def predict(journey: Journey, place: Path, out: Path, *more: object) -> str:
    result = call("predict", "-m", journey.model, "-i", place, "-o", out, "--device", "cpu", *more)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_results_lie_where_those_of_nifti_do(
    journey: Journey, tmp_path: Path, orientation: str, is_reversed: bool
) -> None:
    folder = write_series(
        tmp_path / "anna", phantom_image(journey), orientation=orientation, is_reversed=is_reversed, spacing=(1, 1, 1)
    )
    [series] = find_series(folder).series
    (tmp_path / "nifti").mkdir()
    write_nifti(series, tmp_path / "nifti" / "anna_0000.nii.gz")
    before = states(folder)
    predict(journey, folder, tmp_path / "out", *BOTH)
    predict(journey, tmp_path / "nifti", tmp_path / "expected")
    assert states(folder) == before
    expected = nibabel.load(tmp_path / "expected" / "anna.nii.gz")
    found = nibabel.load(tmp_path / "out" / "anna.nii.gz")
    labels = np.asarray(expected.dataobj).T
    assert set(np.unique(labels)) == {0, 1, 2}
    assert np.array_equal(np.asarray(found.dataobj).T, labels)
    assert np.array_equal(found.affine, expected.affine)
    to_lps = np.diag([-1, -1, 1, 1]) @ expected.affine
    wanted = hd.Volume(labels, to_lps[:, [2, 1, 0, 3]], "PATIENT")
    segmentation = hd.seg.segread(tmp_path / "out" / "anna_seg.dcm").get_volume(combine_segments=True)
    assert np.array_equal(segmentation.match_geometry(wanted).array, labels)
    masks = masks_of_contours(tmp_path / "out" / "anna_rtstruct.dcm", series)
    assert np.array_equal(masks["organ"] + 2 * masks["lesion"], labels)
    assert [*json.loads((tmp_path / "out" / "prediction.json").read_text())["cases"]] == ["anna"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_zip_file_is_a_case_and_a_second_run_keeps_it(journey: Journey, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "deep" / "folder", phantom_image(journey), spacing=(1, 1, 1))
    packed = Path(shutil.make_archive(str(tmp_path / "bert"), "zip", tmp_path / "in"))
    predict(journey, packed, tmp_path / "out", *BOTH)
    files = states(tmp_path / "out")
    assert "kept from before" in predict(journey, packed, tmp_path / "out", *BOTH)
    results = {"bert.nii.gz", "bert_seg.dcm", "bert_rtstruct.dcm"}
    after = states(tmp_path / "out")
    assert [after[name] for name in results] == [files[name] for name in results]
    (tmp_path / "out" / "bert_seg.dcm").unlink()
    predict(journey, packed, tmp_path / "out", *BOTH)
    after = states(tmp_path / "out")
    assert after["bert_rtstruct.dcm"] == files["bert_rtstruct.dcm"]
    assert "bert_seg.dcm" in after


def test_several_studies_are_several_cases(journey: Journey, tmp_path: Path) -> None:
    image = phantom_image(journey)

    def gap(index: int, slice_: Dataset) -> None:
        slice_.ImagePositionPatient[2] += 5 * (index > 3)

    for number, name in enumerate(("anna", "bert", "carl")):
        change = gap if name == "carl" else no_change
        write_series(tmp_path / "in" / name / "ct", image, study=f"1.2.{number}", spacing=(1, 1, 1), change=change)
    result = call("predict", "-m", journey.model, "-i", tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "1.2.2" in result.output
    assert "has a gap" in result.output


def test_of_several_series_one_has_to_be_chosen(journey: Journey, tmp_path: Path) -> None:
    image = phantom_image(journey)
    write_series(tmp_path / "in" / "a", image, number=3, description="Thorax 1.0 B30f", spacing=(1, 1, 1))
    write_series(tmp_path / "in" / "b", image, number=4, description="Abdomen", spacing=(1, 1, 1))
    words = ("predict", "-m", journey.model, "-i", tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu")
    result = call(*words)
    assert result.exit_code == 1
    assert "2 series may be the image: series number 3, 'Thorax 1.0 B30f'" in result.output
    for chosen in ("4", "abdomen", "Thorax*", "1.2.3.3"):
        assert call(*words, "--series", chosen, "--overwrite").exit_code == 0
    result = call(*words, "--series", "Head")
    assert result.exit_code == 1
    assert "no series is 'Head', found: series number 3" in result.output


def test_codes_of_the_model_are_written_edited_and_used(journey: Journey, tmp_path: Path) -> None:
    model = shutil.copytree(journey.model, tmp_path / "model")
    assert "Lesion" in call("segments", model).output
    file = model / SEGMENTS_JSON
    file.write_text(file.read_text().replace('"SegmentLabel": "lesion"', '"SegmentLabel": "Metastase"'))
    folder = write_series(tmp_path / "in", phantom_image(journey), spacing=(1, 1, 1))
    segwright.load_model(model, device="cpu").predict_files(folder, tmp_path / "out", output_types=["dicom-seg"])
    seg = hd.seg.segread(tmp_path / "out" / "in_seg.dcm")
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["organ", "Metastase"]


def test_dicom_output_needs_dicom_input(journey: Journey, tmp_path: Path) -> None:
    images = journey.dataset / "imagesTs"
    result = call("predict", "-m", journey.model, "-i", images, "-o", tmp_path / "out", "--device", "cpu", *BOTH)
    assert result.exit_code == 1
    assert "no DICOM files, which output type 'dicom-seg' needs" in result.output


def test_a_study_is_predicted_from_python(journey: Journey, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "anna", phantom_image(journey), orientation="oblique", spacing=(1, 1, 1))
    model = segwright.load_model(journey.model, device="cpu")
    prediction = model.predict_dicom(folder)
    assert prediction.files == ()
    written = model.predict_dicom(str(folder), tmp_path / "out", output_types=["dicom-seg", "rtstruct"])
    assert [file.name for file in written.files] == ["anna.nii.gz", "anna_seg.dcm", "anna_rtstruct.dcm"]
    assert all(file.is_file() for file in written.files)
    stored = nibabel.load(tmp_path / "out" / "anna.nii.gz")
    assert np.array_equal(np.asarray(stored.dataobj).T, prediction.labels)
    to_lps = np.diag([-1, -1, 1, 1]) @ stored.affine
    assert np.allclose(to_lps[:, [2, 1, 0, 3]], prediction.affine, atol=1e-4)
    shutil.copytree(folder, tmp_path / "two" / "a")
    write_series(tmp_path / "two" / "b", phantom_image(journey), study="1.2.4")
    with pytest.raises(ConfigError, match="holds 2 studies; predict_files predicts several"):
        model.predict_dicom(tmp_path / "two")
