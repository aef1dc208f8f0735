"""Planted inputs unlike the training cases, and cases like them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segwright.data.images import Volume
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
def test_planted_inputs_are_told(known: TrainingRange, kind: str) -> None:
    assert all(known.findings(planted(kind, volume(index))) for index in range(100, 110))


def test_hardly_any_usual_input_is_told(known: TrainingRange) -> None:
    told = [index for index in range(200, 300) if known.findings(volume(index))]
    assert len(told) < 2
