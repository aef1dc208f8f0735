"""Probabilities on disk: three forms of one content, also where a case is exported while it is predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from segwright.core.errors import ConfigError, DatasetError, SegwrightError
from segwright.core.files.json_documents import read_json
from segwright.data.images.image_io import Volume, read_images, write_labels
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.labels import ProbabilityArray
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder.average_saved import average_folders
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "liver": 1, "big / tumour": 2}})
REGIONS = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}, "regions_class_order": [1, 2, 3]}
)
PROVENANCE = Provenance(
    properties={
        "reader": "SimpleITKIO",
        "spacing": [1.0, 1.1, 1.2],
        "geometry": {
            "spacing": [1.2, 1.1, 1.0],
            "origin": [5.0, -3.0, 2.0],
            "direction": [0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        },
    },
    shape_before_cropping=(14, 15, 16),
    box=((1, 13), (2, 12), (0, 11)),
    shape_after_cropping=(12, 10, 11),
    spacing=(1.2, 1.0, 1.1),
    transpose_forward=(2, 0, 1),
    transpose_backward=(1, 2, 0),
)


@pytest.fixture
def predictor(make_model: Callable[..., Path]) -> Predictor:
    return load_predictor(make_model(0), device="cpu", precision="fp32")


def fill(saving: ProbabilityFormat, folder: Path, plan: Plan, labels: Labels, axis: int) -> np.ndarray:
    """Write random probabilities slab by slab; return them as they are in memory."""
    inverse = InverseResampling((9, 8, 7), PROVENANCE, plan.configuration("3d_fullres"), axis=axis)
    planes, *others = inverse.resampler.shape
    values = torch.rand((3, planes, *others), generator=torch.Generator().manual_seed(0)).softmax(0).numpy()
    expected = ProbabilityArray(inverse, labels)
    with saving.open(folder, "case.1", labels, inverse, {"model": "m"}) as writer:
        for start in range(0, planes, 5):
            stop = min(start + 5, planes)
            for target in (writer, expected):
                target.write(start, stop, values[:, start:stop])
    return expected.array


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["npz", "b2nd", "nifti"])
def test_every_form_holds_what_memory_holds(tmp_path: Path, plan: Plan, kind: str, axis: int, labels: Labels) -> None:
    saving = ProbabilityFormat(kind=kind)
    expected = fill(saving, tmp_path, plan, labels, axis)
    assert expected.shape == (3, 15, 16, 14)
    files = saving.files(tmp_path, "case.1", labels)
    if kind == "npz":
        with np.load(files[0], allow_pickle=False) as archive:
            assert list(archive) == ["probabilities"]
            assert archive["probabilities"].dtype == np.float32
            np.testing.assert_array_equal(archive["probabilities"], expected)
    elif kind == "b2nd":
        np.testing.assert_array_equal(blosc2.open(str(files[0]), mode="r")[...], expected)
    else:
        foreground = expected if labels.has_regions else expected[1:]
        for file, truth in zip(files, foreground, strict=True):
            image = sitk.ReadImage(str(file))
            assert image.GetPixelID() == sitk.sitkUInt8
            assert image.GetSpacing() == pytest.approx((1.2, 1.1, 1.0))
            assert image.GetOrigin() == (5.0, -3.0, 2.0)
            np.testing.assert_allclose(image.GetDirection(), PROVENANCE.properties["geometry"]["direction"], atol=1e-6)
            np.testing.assert_allclose(sitk.GetArrayFromImage(image) / 255, truth, atol=0.5 / 255 + 1e-6)
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not left


def test_the_provenance_lies_beside(tmp_path: Path, plan: Plan) -> None:
    fill(ProbabilityFormat(kind="npz"), tmp_path, plan, LABELS, 0)
    document = read_json(tmp_path / "case.1.provenance.json")
    assert document["model"] == "m"
    assert Provenance.from_json(document["provenance"]) == PROVENANCE


def test_damaged_probabilities_are_never_averaged(tmp_path: Path, plan: Plan) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        fill(ProbabilityFormat(kind="b2nd"), folder, plan, LABELS, 0)
        write_labels(np.zeros((15, 16, 14), np.uint8), folder / "case.1.nii.gz", PROVENANCE.properties, "SimpleITKIO")

    def average() -> None:
        average_folders(
            folders, tmp_path / "out", labels=LABELS, file_ending=".nii.gz", reader="SimpleITKIO", overwrite=True
        )

    average()
    file, beside = folders[1] / "case.1.b2nd", folders[1] / "case.1.provenance.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"case.1: .*case.1.b2nd: damaged .*predict the case again, or remove case"):
        average()
    beside.write_text(beside.read_text().replace('"crc32": ', '"crc32": 1'))
    with pytest.raises(SegwrightError, match=r"case.1.provenance.json: damaged"):
        average()


def test_classes_of_nifti_may_be_chosen(tmp_path: Path, plan: Plan) -> None:
    saving = ProbabilityFormat(kind="nifti", classes=("big / tumour", "background"))
    expected = fill(saving, tmp_path, plan, LABELS, 0)
    files = saving.files(tmp_path, "case.1", LABELS)
    assert [file.name for file in files] == ["case.1_big_tumour.nii.gz", "case.1_background.nii.gz"]
    for file, truth in zip(files, expected[[2, 0]], strict=True):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        np.testing.assert_allclose(found / 255, truth, atol=0.5 / 255 + 1e-6)


def test_classes_whose_names_are_one_in_a_file_name_have_maps_of_their_own(tmp_path: Path, plan: Plan) -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, "left a": 1, "Left/a": 2}})
    saving = ProbabilityFormat(kind="nifti")
    expected = fill(saving, tmp_path, plan, labels, 0)
    files = saving.files(tmp_path, "case.1", labels)
    assert [file.name for file in files] == ["case.1_left_a_1.nii.gz", "case.1_Left_a_2.nii.gz"]
    assert ProbabilityFormat(kind="nifti", classes=("Left/a",)).files(tmp_path, "case.1", labels) == files[1:]
    for file, truth in zip(files, expected[1:], strict=True):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        np.testing.assert_allclose(found / 255, truth, atol=0.5 / 255 + 1e-6)


def test_a_number_that_is_added_to_a_name_makes_no_other_one(tmp_path: Path) -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a b": 1, "a/b": 2, "a_b_1": 3}})
    names = [file.name for file in ProbabilityFormat(kind="nifti").files(tmp_path, "c", labels)]
    assert names == ["c_a_b_1_1.nii.gz", "c_a_b_2.nii.gz", "c_a_b_1_3.nii.gz"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, plan: Plan) -> None:
    inverse = InverseResampling((9, 8, 7), PROVENANCE, plan.configuration("3d_fullres"))
    with (
        pytest.raises(RuntimeError, match="meanwhile"),
        ProbabilityFormat(kind="b2nd").open(tmp_path, "a", LABELS, inverse, {}),
    ):
        raise RuntimeError("meanwhile")
    assert [path.name for path in tmp_path.iterdir()] == ["a.provenance.json"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProbabilityFormat(kind="nrrd"), "'nrrd'; choose from npz, b2nd, nifti"),
        (lambda: ProbabilityFormat(kind="npz", classes=("liver",)), "with nifti only"),
        (lambda: ProbabilityFormat(kind="nifti", classes=("livre",)).heads(LABELS), "did you mean 'liver'"),
        (lambda: ProbabilityFormat(kind="nifti").require_writable("Tiff3DIO"), "choose npz or b2nd"),
    ],
)
def test_what_cannot_be_saved_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("kind", ["npz", "b2nd", "nifti"])
def test_a_case_exported_while_it_is_predicted_is_the_same(
    predictor: Predictor, images: Path, tmp_path: Path, kind: str
) -> None:
    saving = ProbabilityFormat(kind=kind)
    for folder, hold in (("held", 2**30), ("streamed", 0)):
        predict_files(predictor, images, tmp_path / folder, probabilities=saving, hold_bytes=hold)
    names = [path.relative_to(tmp_path / "held") for path in (tmp_path / "held").rglob("*") if path.is_file()]
    for name in names:
        if name.name.endswith((".nii.gz", ".npz", ".b2nd")):
            first, second = (tmp_path / folder / name for folder in ("held", "streamed"))
            if name.suffix == ".gz":
                arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (first, second)]
            elif name.suffix == ".npz":
                arrays = [np.load(file)["probabilities"] for file in (first, second)]
            else:
                arrays = [blosc2.open(str(file), mode="r")[...] for file in (first, second)]
            np.testing.assert_array_equal(*arrays)
    again = predict_files(predictor, images, tmp_path / "held", probabilities=saving)
    assert all(record.kept for record in again)
    reference = predictor.predict_case(read_images([images / "a_0000.nii.gz"], "SimpleITKIO"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "streamed" / "a.nii.gz"))), reference.labels
    )


def test_labels_in_memory_come_with_their_probabilities(predictor: Predictor) -> None:
    array = np.random.default_rng(0).normal(size=(1, 9, 12, 10)).astype(np.float32)
    prediction = predictor.predict_case(Volume(array=array, spacing=(1.0, 1.2, 1.1), properties={}), probabilities=True)
    assert prediction.probabilities is not None
    assert prediction.probabilities.shape == (3, 9, 12, 10)
    np.testing.assert_array_equal(prediction.probabilities.argmax(0), prediction.labels)
