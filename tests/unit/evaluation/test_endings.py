"""Folders of label maps that end otherwise than dataset.json says are scored all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segwright import api
from segwright.core.errors import DatasetError

NAMES = ("a", "b")


def write(folder: Path, ending: str, *, wrong_voxels: int = 0) -> Path:
    """Write two label maps of 64 voxels, 32 of them with label 1."""
    folder.mkdir()
    for name in NAMES:
        label = np.zeros((4, 4, 4), np.uint8)
        label[:2] = 1
        label[0, 0, :wrong_voxels] = 0
        image = sitk.GetImageFromArray(label[0] if ending == ".png" else label)
        sitk.WriteImage(image, str(folder / f"{name}{ending}"))
    return folder


def dataset_json(folder: Path) -> Path:
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 2}
    file = folder / "dataset.json"
    file.write_text(json.dumps({**document, "file_ending": ".nii.gz"}))
    return file


@pytest.mark.parametrize("endings", [(".nrrd", ".nrrd"), (".nii.gz", ".nii"), (".mha", ".nii.gz"), (".nii", ".nrrd")])
@pytest.mark.parametrize("values", [None, [1]])
def test_files_are_matched_by_case(tmp_path: Path, endings: tuple[str, str], values: list[int] | None) -> None:
    truth = write(tmp_path / "truth", endings[0])
    predicted = write(tmp_path / "predicted", endings[1], wrong_voxels=4)
    described = None if values else dataset_json(tmp_path)
    result = api.evaluate(truth, predicted, dataset_json=described, label_values=values)
    assert [case.case for case in result.scores.metric_per_case] == [f"{name}{endings[1]}" for name in NAMES]
    assert result.scores.mean_dice == pytest.approx(2 * 28 / (32 + 28))


def test_files_of_the_dataset_come_before_others(tmp_path: Path) -> None:
    truth, predicted = write(tmp_path / "truth", ".nii.gz"), write(tmp_path / "predicted", ".nii.gz")
    for name in ("c.nrrd", "d.nrrd", "e.nrrd"):
        (predicted / name).touch()
    result = api.evaluate(truth, predicted, dataset_json=dataset_json(tmp_path))
    assert result.scores.mean_dice == 1.0


def test_a_prediction_of_another_ending_without_a_reference_is_named(tmp_path: Path) -> None:
    truth, predicted = write(tmp_path / "truth", ".nii.gz"), write(tmp_path / "predicted", ".nrrd")
    (truth / "b.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"^b\.nrrd: prediction without a reference in .*truth"):
        api.evaluate(truth, predicted, dataset_json=dataset_json(tmp_path))


def test_formats_without_a_common_reader_are_refused(tmp_path: Path) -> None:
    truth, predicted = write(tmp_path / "truth", ".nii.gz"), write(tmp_path / "predicted", ".png")
    with pytest.raises(DatasetError, match=r"a\.nii\.gz and .*a\.png are of formats without a common reader"):
        api.evaluate(truth, predicted, dataset_json=dataset_json(tmp_path))
