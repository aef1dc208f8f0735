"""A dataset in several orientations, planned with --reorient: predictions do not depend on the orientation."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from journeys import call

from segwright import api
from segwright.data.images.orientation import canonical_axes
from segwright.data.phantom import write_dataset
from segwright.data.plan import Plan

CODES = ("LPS", "RAS", "LAS", "SPR")


def turned(file: Path, codes: str, target: Path) -> None:
    image = nibabel.load(file)
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(image.as_reoriented(change), target)


def test_orientations_of_one_case_agree(tmp_path: Path) -> None:
    raw, work = tmp_path / "raw" / "Dataset005_Turned", tmp_path / "work"
    write_dataset(raw, num_training=5, num_test=1, edge=16)
    for index, image in enumerate(sorted((raw / "imagesTr").iterdir())):
        label = raw / "labelsTr" / image.name.replace("_0000", "")
        for file in (image, label):
            turned(file, CODES[index % len(CODES)], file)
    planned = call("--work", work, "plan", raw, "--reorient")
    assert planned.exit_code == 0, planned.stderr
    plan = Plan.load(work / "preprocessed" / raw.name / "nnUNetPlans.json")
    assert plan.image_reader_writer.endswith("WithReorient")
    trained = call(
        *("--work", work, "train", raw, "--config", "3d_fullres", "--fold", "0", "--epochs", "1"),
        *("--iterations", "2", "--batch-size", "2", "--device", "cpu"),
    )
    assert trained.exit_code == 0, trained.stderr
    [model] = (work / "results" / raw.name).iterdir()
    [test] = (raw / "imagesTs").iterdir()
    for codes in CODES:
        turned(test, codes, _in(tmp_path / "images") / f"{codes}_0000.nii.gz")
    api.predict(model, tmp_path / "images", tmp_path / "out", device="cpu")
    predictor = api.load_model(model, device="cpu")
    found = []
    for codes in CODES:
        image, label = (
            nibabel.load(tmp_path / folder / name)
            for folder, name in (("images", f"{codes}_0000.nii.gz"), ("out", f"{codes}.nii.gz"))
        )
        np.testing.assert_allclose(label.affine, image.affine)
        from_array = predictor.predict(np.asarray(image.dataobj), affine=image.affine)
        np.testing.assert_array_equal(np.asarray(label.dataobj), from_array)
        found.append(np.asarray(nibabel.as_closest_canonical(label).dataobj))
    assert found[0].any()
    assert all(np.array_equal(labels, found[0]) for labels in found)


def _in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("reader", ["NibabelIO", "SimpleITKIO"])
@pytest.mark.parametrize("codes", [*CODES, "AIL"])
def test_axes_come_from_the_header(tmp_path: Path, reader: str, codes: str) -> None:
    shape = (5, 7, 9)  # right, anterior, superior
    source, file = tmp_path / "ras.nii.gz", tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), source)
    turned(source, codes, file)
    array_shape = tuple(reversed(nibabel.load(file).shape))
    order = canonical_axes(file, reader)
    assert tuple(array_shape[axis] for axis in order) == (9, 7, 5)


def test_pictures_have_no_orientation(tmp_path: Path) -> None:
    from segwright.core.errors import ConfigError
    from segwright.data.images.orientation import reorienting_reader

    with pytest.raises(ConfigError, match="store no orientation"):
        reorienting_reader("NaturalImage2DIO")
