"""Planted inputs unlike the training cases, and cases like them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segwright.data.images.image_io import Volume
from segwright.data.outliers import TrainingRange, measure
from segwright.data.phantom import make_phantom


def volume(index: int) -> Volume:
    phantom = make_phantom(index, edge=32)
    return Volume(array=phantom.image[None], spacing=phantom.spacing, properties={})


@pytest.fixture(scope="module")
def known() -> TrainingRange:
    return TrainingRange.of([measure(volume(index)) for index in range(20)])


def planted(kind: str, usual: Volume) -> Volume:
    array, draw = usual.array, np.random.default_rng(0)
    if kind == "metres":
        return replace(usual, spacing=(0.001, 0.001, 0.001))
    changed = {
        "noise": array + draw.normal(scale=80, size=array.shape).astype(np.float32),
        "nothing but noise": draw.normal(size=array.shape).astype(np.float32),
        "inverted": array.max() - array,
        "offset": array + 1024,
        "scaled": array * 100,
    }[kind]
    return replace(usual, array=changed.astype(np.float32))


@pytest.mark.parametrize("kind", ["metres", "noise", "nothing but noise", "inverted", "offset", "scaled"])
def test_planted_inputs_are_reported(known: TrainingRange, kind: str) -> None:
    assert all(known.findings(planted(kind, volume(index))) for index in range(100, 110))


def test_hardly_any_usual_input_is_reported(known: TrainingRange) -> None:
    told = [index for index in range(200, 300) if known.findings(volume(index))]
    assert len(told) < 2


def mr_like(index: int, edge: int = 16) -> Volume:
    """An MR of 1 mm: no negative intensities, on a scale of its own."""
    array = np.abs(np.random.default_rng(index).normal(size=(1, edge, edge, edge)))
    return Volume(array=(array * (50 + 40 * (index % 5))).astype(np.float32), spacing=(1.0, 1.0, 1.0), properties={})


def ct_like(index: int, spacing: float = 1.0) -> Volume:
    """A CT: half of it air, half of it soft tissue."""
    array = np.random.default_rng(index).normal(40, 30, size=(1, 16, 16, 16))
    array[:, :8] = -1000
    return Volume(array=array.astype(np.float32), spacing=(spacing,) * 3, properties={})


def told(usual: list[Volume], volume: Volume) -> str:
    return "; ".join(TrainingRange.of([measure(each) for each in usual]).findings(volume))


@pytest.mark.parametrize("cases", [1, 3, 5, 12, 40])
def test_another_modality_is_flagged_however_few_cases_were_seen(cases: int) -> None:
    mr, ct = [mr_like(index) for index in range(cases)], [ct_like(index) for index in range(cases)]
    assert "intensities below -1000" in told(mr, ct_like(100)) or "in training" in told(mr, ct_like(100))
    assert told(ct, mr_like(100))
    assert not told(mr, mr_like(100))
    assert not told(ct, ct_like(100))


@pytest.mark.parametrize("cases", [1, 3, 5, 12, 40])
@pytest.mark.parametrize("factor", [1 / 3, 3])
def test_voxels_of_another_size_are_flagged_however_few_cases_were_seen(cases: int, factor: float) -> None:
    usual = [ct_like(index) for index in range(cases)]
    assert "spacing of axis 0" in told(usual, ct_like(100, spacing=factor))
    assert not told(usual, ct_like(100, spacing=1.5))


@pytest.mark.parametrize("cases", [1, 2, 4])
@pytest.mark.parametrize("factor", [1 / 1.9, 1.9])
def test_of_few_cases_nearly_twice_the_spacing_is_flagged(cases: int, factor: float) -> None:
    usual = [mr_like(index) for index in range(cases)]
    volume = mr_like(100)
    assert "spacing of axis 0" in told(usual, replace(volume, spacing=tuple(factor * each for each in volume.spacing)))
