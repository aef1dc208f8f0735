"""Splits, fingerprints and image readings against what nnU-Net 2.8.1 gave (tests/golden/make_data.py)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright.data import dataset, fingerprint
from segwright.data.crossval.splits import default_splits
from segwright.data.images.image_io import read_header, read_images
from tests.unit.data import made_files

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
HIPPOCAMPUS = Path(__file__).parents[4] / "shared" / "data" / "Dataset004_Hippocampus"


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("count", ["5", "6", "7", "11", "20", "103", "131"])
def test_splits_equal_the_reference(count: str) -> None:
    expected = golden("splits")[count]

    splits = default_splits(expected["identifiers"])

    assert [{"train": list(split.train), "val": list(split.val)} for split in splits] == expected["splits"]


def assert_equals_reference(found: fingerprint.Fingerprint, expected: dict[str, Any]) -> None:
    document = found.model_dump(mode="json")
    assert document.keys() - {"segwright"} == expected.keys()  # one addition of ours, which no plan follows
    assert document["shapes_after_crop"] == expected["shapes_after_crop"]
    assert document["spacings"] == expected["spacings"]
    key = "foreground_intensity_properties_per_channel"
    assert document[key].keys() == expected[key].keys()
    for channel, statistics in expected[key].items():
        assert document[key][channel] == pytest.approx(statistics, rel=1e-5)
    key = "median_relative_size_after_cropping"
    assert document[key] == pytest.approx(expected[key], rel=1e-12)


def test_fingerprint_with_ignore_label_and_two_channels_equals_the_reference(tmp_path: Path) -> None:
    folder = made_files.write_fingerprint_volumes(tmp_path, every_case_has_foreground=True)

    assert_equals_reference(fingerprint.extract(dataset.load(folder)), golden("fingerprints")["full"])


def test_fingerprint_with_a_case_without_foreground_equals_the_reference(tmp_path: Path) -> None:
    folder = made_files.write_fingerprint_volumes(tmp_path, every_case_has_foreground=False)

    assert_equals_reference(fingerprint.extract(dataset.load(folder)), golden("fingerprints")["empty"])


def test_fingerprint_of_rgb_pictures_equals_the_reference(tmp_path: Path) -> None:
    folder = made_files.write_fingerprint_pictures(tmp_path)

    assert_equals_reference(fingerprint.extract(dataset.load(folder)), golden("fingerprints")["pictures"])


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="needs the Hippocampus data beside the project")
def test_fingerprint_of_hippocampus_equals_the_reference() -> None:
    expected = json.loads((HIPPOCAMPUS.parent / "reference" / "dataset_fingerprint.json").read_text())

    assert_equals_reference(fingerprint.extract(dataset.load(HIPPOCAMPUS)), expected)


@pytest.mark.parametrize("name", sorted(golden("images")))
def test_image_is_read_as_the_reference_reads_it(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    reader = made_files.write_images(tmp_path)[name]
    expected = golden("images")[name]

    volume = read_images([tmp_path / name], reader)
    header = read_header(tmp_path / name, reader)

    assert list(volume.array.shape) == expected["shape"]
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array.ravel(), np.float32(expected["values"]))
    assert volume.spacing == pytest.approx(expected["spacing"], rel=1e-12)
    assert (header.num_channels, *header.shape) == volume.array.shape
    assert header.spacing == volume.spacing
