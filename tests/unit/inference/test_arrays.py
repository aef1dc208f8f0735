"""Arrays of a caller: what comes back lies where it was, whatever the order and orientation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import segwright
from segwright.core.errors import ImageError
from segwright.data.outliers import TrainingRange, measure
from segwright.inference.arrays import to_volume
from segwright.inference.ensemble import Ensemble
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor
from segwright.inference.reliability.model import ReliabilityModel

RAS = np.diag([2.0, 1.0, 3.0, 1.0])
ORIENTATIONS = ("RAS", "LPS", "LAS", "SPR", "AIL")


def phantom(shape: tuple[int, ...] = (11, 13, 9)) -> np.ndarray:
    """Return an image without any symmetry."""
    grid = np.meshgrid(*(np.linspace(0, 1, extent) for extent in shape), indexing="ij")
    return sum(weight * axis**power for weight, power, axis in zip((1, 2, 4), (1, 2, 3), grid, strict=True)).astype(
        np.float32
    )


def stored(image: np.ndarray, codes: str) -> nibabel.Nifti1Image:
    """Return a RAS image as it would be stored in another orientation."""
    original = nibabel.Nifti1Image(image, RAS)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    return original.as_reoriented(nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted))


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_an_array_is_placed_as_its_reader_reads_the_file(tmp_path: Path, codes: str, reader: str) -> None:
    from segwright.data.images.image_io import read_images

    image = stored(phantom(), codes)
    file = tmp_path / "image.nii.gz"
    nibabel.save(image, file)
    expected = read_images([file], reader)
    array_volume = to_volume(np.asarray(image.dataobj), num_channels=1, reader=reader, affine=image.affine)
    np.testing.assert_allclose(array_volume.volume.array, expected.array, atol=1e-6)
    np.testing.assert_allclose(array_volume.volume.spacing, expected.spacing, atol=1e-6)
    np.testing.assert_array_equal(array_volume.restore(array_volume.volume.array)[0], np.asarray(image.dataobj))


def test_without_an_affine_the_order_is_the_readers() -> None:
    array_volume = to_volume(phantom(), num_channels=1, reader="SimpleITKIO", spacing=(3, 2, 1))
    assert array_volume.volume.spacing == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(array_volume.volume.array[0], phantom())


def test_a_flat_image_gets_a_first_axis_and_loses_it_again() -> None:
    array_volume = to_volume(torch.zeros(2, 8, 6), num_channels=2, reader="NaturalImage2DIO", spacing=(1, 1))
    assert array_volume.volume.array.shape == (2, 1, 8, 6)
    assert array_volume.volume.spacing == (999.0, 1.0, 1.0)
    assert array_volume.restore(np.zeros((1, 8, 6))).shape == (8, 6)
    assert array_volume.restore(np.zeros((3, 1, 8, 6))).shape == (3, 8, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no spacing of its own"),
        ({"spacing": (1, 1, 0)}, "expected positive numbers"),
        ({"spacing": (1,)}, "two or three numbers"),
        ({"spacing": (1, 1, 1), "num_channels": 2}, "behind 2 channels"),
        ({"spacing": (1, 1, 1), "reader": "NibabelIOWithReorient"}, r"needs RAS\+ .* give affine="),
        ({"affine": np.zeros((4, 4))}, "can be inverted"),
        ({"affine": np.eye(3)}, r"expected a \(4, 4\) matrix"),
        ({"affine": "eye"}, r"affine 'eye': expected a \(4, 4\) matrix"),
        ({"spacing": 1.0}, r"spacing 1.0: expected two or three numbers, one for each axis in mm, such as \(3.0"),
        ({"spacing": "abc"}, "spacing 'abc': expected two or three numbers"),
        ({"spacing": (1, 1), "affine": RAS}, "three with an affine"),
        ({"spacing": (3, 3, 3), "affine": RAS}, r"contradicts the affine, whose voxels are \[2.0, 1.0, 3.0\] mm; give"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_volume(phantom(), **{"num_channels": 1, "reader": "NibabelIO", **options})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4), complex), "array of complex128: expected integers or real numbers; give its magnitude"),
        (torch.zeros(4, 4, 4, dtype=torch.complex64), "array of complex64: expected integers or real numbers"),
        (np.array([[["a"]]]), "array of <U1: expected integers or real numbers"),
        (np.array([[["a"]]], dtype=object), "array of type ndarray .*; expected numbers, as a numpy array or a torch"),
        ([[[1, 2], [3]]], "array of type list .*; expected numbers, as a numpy array or a torch tensor"),
        (np.zeros((0, 4, 4)), r"array of shape \(0, 4, 4\): expected at least one voxel"),
    ],
)
def test_what_is_no_image_is_refused(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_volume(array, num_channels=1, reader="SimpleITKIO", spacing=(1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16, torch.uint8, torch.bool])
def test_every_real_tensor_will_do(dtype: torch.dtype) -> None:
    tensor = (torch.arange(64).reshape(4, 4, 4) % 2).to(dtype)
    array_volume = to_volume(tensor, num_channels=1, reader="SimpleITKIO", spacing=(1, 1, 1))
    np.testing.assert_array_equal(array_volume.volume.array[0], np.arange(64).reshape(4, 4, 4) % 2)


def test_a_spacing_that_the_affine_has_too_will_do() -> None:
    array_volume = to_volume(phantom(), num_channels=1, reader="NibabelIO", spacing=(2.0001, 1, 3), affine=RAS)
    assert array_volume.volume.spacing == (3.0, 1.0, 2.0001)


def test_numbers_too_large_for_float32_are_refused_by_name(predictor: Predictor) -> None:
    with pytest.raises(ImageError, match=r"array: \d+ voxels are infinite or larger than 1e\+30"):
        predictor.predict(phantom().astype(float) * 1e300, spacing=(1, 1, 1))


@pytest.mark.parametrize("method", ["predict", "predict_probabilities", "predict_uncertainty"])
@pytest.mark.parametrize("several", [False, True])
def test_arrays_unlike_the_training_cases_are_told(
    predictor: Predictor, caplog: pytest.LogCaptureFixture, method: str, several: bool
) -> None:
    usual = to_volume(phantom(), num_channels=1, reader="SimpleITKIO", affine=RAS).volume
    training = TrainingRange.of([measure(usual)] * 5, ["RAS"])
    predictor.reliability = ReliabilityModel(training=training)
    ask = getattr(Ensemble([predictor, predictor]) if several else predictor, method)
    ask(phantom(), affine=RAS)
    assert not caplog.records
    ask(phantom() * 1000, affine=np.diag([-2.0, 1.0, 3.0, 1.0]))
    assert "array: axes run LAS, those of the training cases RAS" in caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert len(caplog.records) > 1


@pytest.fixture
def predictor(make_model: Callable[..., Path]) -> Predictor:
    return load_predictor(make_model(0), device="cpu", precision="fp32")


def test_an_array_gives_what_its_case_gives(predictor: Predictor) -> None:
    channels = predictor.num_channels
    image = np.stack([phantom((20, 24, 18)) + channel for channel in range(channels)])
    array_volume = to_volume(image, num_channels=channels, reader=predictor.plan.image_reader_writer, spacing=(1, 1, 1))
    expected = predictor.predict_case(array_volume.volume, probabilities=True)
    np.testing.assert_array_equal(predictor.predict(image, spacing=(1, 1, 1)), expected.labels)
    found = predictor.predict_probabilities(image, spacing=(1, 1, 1))
    assert expected.probabilities is not None
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_orientations_agree_where_the_plan_asks_for_one(predictor: Predictor) -> None:
    channels = predictor.num_channels
    predictor.plan = predictor.plan.model_copy(update={"image_reader_writer": "NibabelIOWithReorient"})
    expected: np.ndarray | None = None
    for codes in ORIENTATIONS:
        image = stored(phantom((20, 24, 18)), codes)
        array = np.stack([np.asarray(image.dataobj)] * channels)
        labels = predictor.predict(array, affine=image.affine)
        assert labels.shape == image.shape
        back = nibabel.as_closest_canonical(nibabel.Nifti1Image(labels, image.affine))
        found = np.asarray(back.dataobj)
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)


def test_threads_share_a_predictor(predictor: Predictor) -> None:
    image = np.stack([phantom((20, 24, 18))] * predictor.num_channels)
    expected = predictor.predict(image, spacing=(1, 1, 1))
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(predictor.predict(image, spacing=(1, 1, 1)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(labels, expected) for labels in found)


def test_a_folder_is_predicted_by_the_same_object(
    make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    records = segwright.load_model(make_model(0), device="cpu").predict_files(images, tmp_path / "out")
    assert records
    assert all(record.output.is_file() for record in records)
