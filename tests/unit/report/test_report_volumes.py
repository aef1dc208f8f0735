"""Volumes of the report's viewer: turned, cut, thinned, packed."""

from __future__ import annotations

import zlib
from base64 import b64decode

import numpy as np
import numpy.typing as npt
import pytest

from segwright.report.case_images import CaseImages, directions_of
from segwright.report.volumes import most_wrong, pack, quantise, upright


def case(shape: tuple[int, int, int] = (8, 10, 12), directions: str = "", seed: int = 0) -> CaseImages:
    rng = np.random.default_rng(seed)
    reference = np.zeros(shape, dtype=np.int32)
    reference[2:5, 3:6, 4:9] = 7
    prediction = np.zeros_like(reference)
    prediction[2:5, 3:6, 4:8] = 7
    return CaseImages(
        identifier="c",
        image=rng.normal(size=(1, *shape)).astype(np.float32),
        reference=reference,
        prediction=prediction,
        spacing=(3.0, 1.0, 2.0),
        directions=directions,
        is_raw=True,
    )


def unpacked(payload: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(b64decode(payload)), np.uint8).reshape(-1, *shape)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ([1, 0, 0, 0, 1, 0, 0, 0, 1], "SPL"),
        ([-1, 0, 0, 0, -1, 0, 0, 0, 1], "SAR"),
        ([0, 0, 1, 1, 0, 0, 0, -1, 0], "LIP"),
        ([0.7, 0.7, 0, -0.7, 0.7, 0, 0, 0, 1], ""),
    ],
)
def test_directions_follow_from_the_matrix(direction: list[float], expected: str) -> None:
    assert directions_of({"geometry": {"direction": direction}}) == expected


def test_an_affine_is_read_as_right_anterior_superior() -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0]).tolist()
    assert directions_of({"geometry": {"affine": affine}}) == "SAR"


def test_a_voxel_keeps_its_place_in_the_body_when_turned() -> None:
    turned = upright(case(directions="LIP"))
    source = case(directions="LIP")
    # File axes lead to the left, down and back: index (l, i, p) is found at (last - i, p, l).
    assert turned.spacing == (1.0, 2.0, 3.0)
    assert turned.image[0, 10 - 1 - 4, 5, 3] == source.image[0, 3, 4, 5]
    assert turned.reference[10 - 1 - 4, 5, 3] == source.reference[3, 4, 5] == 7


def test_labels_are_stored_as_positions_and_the_start_is_where_they_differ() -> None:
    packed = pack(case(), [5, 7], max_bytes=10**6, windows=[None])
    _, truth, predicted = unpacked(packed.payload, packed.shape)
    assert set(np.unique(truth)) == {0, 2}
    assert truth[packed.start] != predicted[packed.start]


def test_what_is_too_large_is_cut_then_thinned() -> None:
    whole = pack(case((40, 60, 50)), [7], max_bytes=10**6, windows=[None])
    assert (whole.shape, whole.remark) == ((40, 60, 50), "raw image")
    cut = pack(case((40, 60, 50)), [7], max_bytes=12_000, windows=[None])
    assert "cropped to the labels" in cut.remark
    assert max(cut.shape) < 25
    assert cut.spacing == (3.0, 1.0, 2.0)
    thinned = pack(case((40, 60, 50)), [7], max_bytes=1500, windows=[None])
    assert len(b64decode(thinned.payload)) <= 1500
    assert "voxels averaged" in thinned.remark
    assert thinned.spacing[1] > 1.0


def test_the_window_decides_black_and_white() -> None:
    values = np.array([-100.0, 0.0, 50.0, 100.0, 900.0], dtype=np.float32)
    assert quantise(values, (0.0, 100.0)).tolist() == [0, 0, 128, 255, 255]
    assert quantise(np.zeros(3, dtype=np.float32), None).tolist() == [0, 0, 0]


def test_without_differences_the_largest_slice_is_shown() -> None:
    reference = np.zeros((5, 6, 6), dtype=np.uint8)
    reference[3, 1:4, 1:4] = 1
    assert most_wrong(reference, reference) == (3, 2, 2)
    assert most_wrong(reference * 0, reference * 0) == (2, 3, 3)
