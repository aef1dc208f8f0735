from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from segwright.core.errors import DatasetError, ImageError, SegwrightError
from segwright.data import dataset, fingerprint
from segwright.data.fingerprint import Fingerprint
from tests.unit.data import made_files


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "TOTAL_SAMPLES", 10_000)


def test_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    loaded = dataset.load(made_files.write_dataset(tmp_path / "d", num_channels=2))

    assert fingerprint.extract(loaded, workers=1) == fingerprint.extract(loaded, workers=4)


def test_fingerprint_survives_its_file(tmp_path: Path) -> None:
    made = fingerprint.extract(dataset.load(made_files.write_dataset(tmp_path / "d")))

    made.save(tmp_path / "out" / "dataset_fingerprint.json")

    assert Fingerprint.load(tmp_path / "out" / "dataset_fingerprint.json") == made
    document = json.loads((tmp_path / "out" / "dataset_fingerprint.json").read_text())
    assert list(document) == sorted(document)


def test_damaged_fingerprint_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"spacings": []}')

    with pytest.raises(SegwrightError, match=r"f\.json: .*shapes_after_crop: Field required"):
        Fingerprint.load(tmp_path / "f.json")


@pytest.mark.parametrize("key", ["spacings", "shapes_after_crop"])
def test_fingerprint_of_cases_with_different_axes_is_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    fingerprint.extract(dataset.load(made_files.write_dataset(tmp_path / "d"))).save(path)
    document = json.loads(path.read_text())
    document[key][0] = [1, 1]
    del document["checksum"]
    path.write_text(json.dumps(document))

    with pytest.raises(SegwrightError, match=r"f\.json: .*rows of \[2, 3\] numbers; expected one per axis"):
        Fingerprint.load(path)


def test_dataset_without_any_foreground_is_refused(tmp_path: Path) -> None:
    folder = made_files.write_dataset(tmp_path / "d")
    for path in (folder / "labelsTr").iterdir():
        SimpleITK.WriteImage(made_files.itk_image(np.zeros((6, 8, 7), np.uint8)), str(path))

    with pytest.raises(DatasetError, match="none of its 5 cases has a voxel with a foreground label"):
        fingerprint.extract(dataset.load(folder))


def test_image_with_nan_is_named(tmp_path: Path) -> None:
    folder = made_files.write_dataset(tmp_path / "d", ending=".nrrd")
    path = folder / "imagesTr" / "case_03_0000.nrrd"
    SimpleITK.WriteImage(made_files.itk_image(np.full((6, 8, 7), np.inf, np.float32)), str(path))

    with pytest.raises(ImageError, match=r"case_03_0000\.nrrd: 336 voxels are infinite"):
        fingerprint.extract(dataset.load(folder))


def test_label_on_another_grid_is_named(tmp_path: Path) -> None:
    folder = made_files.write_dataset(tmp_path / "d")
    path = folder / "labelsTr" / "case_03.nii.gz"
    SimpleITK.WriteImage(made_files.itk_image(np.ones((6, 8, 6), np.uint8)), str(path))

    with pytest.raises(ImageError, match=r"case_03\.nii\.gz: shape \(6, 8, 6\) differs from \(6, 8, 7\) of its image"):
        fingerprint.extract(dataset.load(folder))


def test_wrong_number_of_channels_in_a_file_is_named(tmp_path: Path) -> None:
    folder = made_files.write_dataset(tmp_path / "d")
    path = folder / "imagesTr" / "case_03_0000.nii.gz"
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SimpleITK.ReadImage(str(path))] * 2), str(path))

    with pytest.raises(DatasetError, match=r"case 'case_03' has 2 channels, dataset\.json names 1"):
        fingerprint.extract(dataset.load(folder))
