"""Our preprocessing against what nnU-Net 2.8.1 wrote for the same datasets, see make_preprocessing.py there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright.core.boxes import crop
from segwright.data.images.image_io import Volume
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.preprocessing.class_locations import class_locations
from segwright.preprocessing.pipeline import Preprocessed, preprocess_case, preprocess_for_prediction
from tests.inverse_preprocessing import undo_labels

FOLDER = Path(__file__).parents[2] / "golden" / "preprocessing"
IMAGE_TOLERANCE = 1e-4  # normalised units
LABEL_AGREEMENT = 0.9999


def cases() -> Iterator[Any]:
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path) as golden:
            keys = [name.removesuffix("_seg") for name in golden.files if name.endswith("_seg")]
        for key in keys:
            yield pytest.param(path.stem, *key.rsplit("_", 1), id=f"{path.stem}-{key}")


@lru_cache(maxsize=4)
def load(name: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{name}.npz") as golden:
        return dict(golden)


def plan_of(name: str) -> Plan:
    return Plan.from_json(json.loads(str(load(name)["plans"])))


def volume_of(name: str, index: str) -> Volume:
    golden = load(name)
    return Volume(
        array=golden[f"image_{index}"].astype(np.float32),
        spacing=tuple(golden[f"spacing_{index}"].tolist()),
        properties={},
    )


@lru_cache(maxsize=4)
def run(name: str, configuration: str, index: str) -> Preprocessed:
    plan, label = plan_of(name), load(name)[f"label_{index}"][None]
    return preprocess_case(volume_of(name, index), label, plan, plan.configuration(configuration))


@pytest.mark.parametrize(("name", "configuration", "index"), cases())
def test_image_equals_the_reference(name: str, configuration: str, index: str) -> None:
    expected = load(name)[f"{configuration}_{index}_image"]
    actual = run(name, configuration, index).image
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < IMAGE_TOLERANCE


@pytest.mark.parametrize(("name", "configuration", "index"), cases())
def test_a_case_to_predict_is_the_same_to_the_last_bit(name: str, configuration: str, index: str) -> None:
    plan, volume = plan_of(name), volume_of(name, index)
    prepared = preprocess_for_prediction(volume, plan, plan.configuration(configuration))
    expected = preprocess_case(volume, None, plan, plan.configuration(configuration))
    assert np.array_equal(np.asarray(prepared.image), expected.image)
    assert prepared.provenance == expected.provenance


@pytest.mark.parametrize(("name", "configuration", "index"), cases())
def test_label_equals_the_reference(name: str, configuration: str, index: str) -> None:
    expected = load(name)[f"{configuration}_{index}_seg"]
    actual = run(name, configuration, index).label
    assert actual is not None
    assert actual.shape == expected.shape
    assert (actual == expected).mean() >= LABEL_AGREEMENT


@pytest.mark.parametrize(("name", "configuration", "index"), cases())
def test_crop_equals_the_reference(name: str, configuration: str, index: str) -> None:
    golden, key = load(name), f"{configuration}_{index}"
    provenance = run(name, configuration, index).provenance
    assert provenance.box == tuple(map(tuple, golden[f"{key}_box"].tolist()))
    assert provenance.shape_before_cropping == tuple(golden[f"{key}_shape_before"])
    assert provenance.shape_after_cropping == tuple(golden[f"{key}_shape_after"])


@pytest.mark.parametrize(("name", "configuration", "index"), cases())
def test_class_locations_equal_the_reference(name: str, configuration: str, index: str) -> None:
    golden, key = load(name), f"{configuration}_{index}"
    labels = Labels.from_dataset_json(json.loads(str(golden["dataset_json"])))
    locations = class_locations(golden[f"{key}_seg"], labels.class_keys)
    for position, (classes, voxels) in enumerate(locations.items()):
        assert golden[f"{key}_class_{position}"].tolist() == list(np.atleast_1d(classes))
        assert len(voxels) == golden[f"{key}_count_{position}"]
        assert np.array_equal(voxels[:50], golden[f"{key}_voxels_{position}"])


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.npz"))])
def test_undo_puts_the_cropped_labels_back(name: str) -> None:
    golden = load(name)
    configuration = json.loads(str(golden["plans"]))["configurations"]
    provenance = run(name, "3d_fullres" if "3d_fullres" in configuration else "2d", "0").provenance
    label = golden["label_0"]
    cropped = crop(label.transpose(provenance.transpose_forward), provenance.box)
    assert np.array_equal(undo_labels(cropped, provenance), label)
