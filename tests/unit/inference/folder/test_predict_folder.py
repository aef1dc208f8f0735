"""Folders of cases in, folders of label maps out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segwright.core.errors import ConfigError, ProblemReport, SegwrightError, WorkspaceError
from segwright.data.cases import Case
from segwright.data.images.image_io import Volume, read_images
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder import one_model
from segwright.inference.folder.jobs import read_volume
from segwright.inference.folder.predict_folder import predict_files
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor


@pytest.fixture
def predictor(make_model: Callable[..., Path]) -> Predictor:
    return load_predictor(make_model(0), device="cpu", precision="fp32")


def state(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_every_case_gets_labels_on_the_grid_of_its_image(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    before = state(images)
    records = predict_files(predictor, images, tmp_path / "out")
    assert [record.case for record in records] == ["a", "b"]
    assert sorted(state(tmp_path / "out")) == [
        "a.nii.gz", "b.nii.gz", "dataset.json", "plans.json", "prediction.json"
    ]  # fmt: skip
    for record in records:
        image = sitk.ReadImage(str(images / f"{record.case}_0000.nii.gz"))
        labels = sitk.ReadImage(str(record.output))
        assert (labels.GetSize(), labels.GetSpacing(), labels.GetOrigin()) == (
            image.GetSize(),
            image.GetSpacing(),
            image.GetOrigin(),
        )
    assert state(images) == before


def test_files_hold_what_predicting_the_case_gives(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    predict_files(predictor, images, tmp_path / "out", probabilities=True)
    expected = predictor.predict_case(read_images([images / "a_0000.nii.gz"], "SimpleITKIO"), probabilities=True)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz")))
    np.testing.assert_array_equal(labels, expected.labels)
    with np.load(tmp_path / "out" / "a.npz") as archive:
        np.testing.assert_array_equal(archive["probabilities"], expected.probabilities)
        assert archive["probabilities"].shape == (3, *labels.shape)
    assert (tmp_path / "out" / "a.provenance.json").is_file()


def test_the_journal_tells_model_versions_and_times(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    predict_files(predictor, images, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert document["schema_version"] == 1
    assert document["model"]["folds"] == ["0"]
    assert document["model"]["mirror_axes"] == [0, 1, 2]
    assert document["versions"]["segwright"]
    assert document["cases"]["a"]["output"] == "a.nii.gz"
    assert document["cases"]["a"]["predict_s"] > 0


def test_finished_cases_are_kept_and_missing_ones_made(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(predictor, images, out)
    (out / "b.nii.gz").unlink()
    before = state(out)
    records = predict_files(predictor, images, out)
    assert [record.kept for record in records] == [True, False]
    assert state(out)["a.nii.gz"] == before["a.nii.gz"]
    assert (out / "b.nii.gz").is_file()


def test_a_changed_input_is_predicted_anew(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    predict_files(predictor, images, tmp_path / "out")
    image = sitk.ReadImage(str(images / "a_0000.nii.gz"))
    sitk.WriteImage(image * 2, str(images / "a_0000.nii.gz"))
    assert [record.kept for record in predict_files(predictor, images, tmp_path / "out")] == [False, True]


def test_probabilities_that_are_missing_are_made(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    predict_files(predictor, images, tmp_path / "out")
    records = predict_files(predictor, images, tmp_path / "out", probabilities=True)
    assert [record.kept for record in records] == [False, False]
    assert (tmp_path / "out" / "b.npz").is_file()


def test_predictions_of_another_model_are_not_replaced_unasked(
    predictor: Predictor, make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    predict_files(predictor, images, tmp_path / "out")
    other = load_predictor(make_model(3), folds=[3], device="cpu", precision="fp32")
    with pytest.raises(WorkspaceError, match="predictions of another model"):
        predict_files(other, images, tmp_path / "out")
    assert [record.kept for record in predict_files(other, images, tmp_path / "out", overwrite=True)] == [False, False]


@pytest.mark.parametrize("inside", ["", "predictions"])
def test_the_input_folder_is_never_the_output_folder(predictor: Predictor, images: Path, inside: str) -> None:
    before = state(images)
    with pytest.raises(WorkspaceError, match="never written to"):
        predict_files(predictor, images, images / inside)
    assert state(images) == before


def test_all_missing_channels_are_named_before_work_starts(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    for name in ("c", "d"):
        (images / f"{name}_0001.nii.gz").write_bytes((images / "a_0000.nii.gz").read_bytes())
    with pytest.raises(ProblemReport) as caught:
        predict_files(predictor, images, tmp_path / "out")
    assert "c_0000.nii.gz" in str(caught.value)
    assert "d_0000.nii.gz" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["a", "b"])
@pytest.mark.parametrize("hold_bytes", [0, 1 << 30])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_bad_image_costs_its_case_alone(
    predictor: Predictor, images: Path, tmp_path: Path, bad: str, hold_bytes: int, num_devices: int
) -> None:
    (images / f"{bad}_0000.nii.gz").write_bytes(b"broken")
    good = "b" if bad == "a" else "a"
    others = [predictor] * (num_devices - 1)
    with pytest.raises(ProblemReport, match=f"^{bad}: .*cannot be read"):
        predict_files(predictor, images, tmp_path / "out", hold_bytes=hold_bytes, others=others)
    assert (tmp_path / "out" / f"{good}.nii.gz").is_file()
    assert not (tmp_path / "out" / f"{bad}.nii.gz").exists()
    assert set(json.loads((tmp_path / "out" / "prediction.json").read_text())["cases"]) == {good}


def test_all_bad_images_are_listed(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    for case in "ab":
        (images / f"{case}_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(ProblemReport) as caught:
        predict_files(predictor, images, tmp_path / "out")
    assert [problem.where for problem in caught.value.problems] == ["a", "b"]


def test_a_case_that_is_too_large_for_the_memory_costs_itself_alone(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(case: Case, reader: str) -> Volume:
        if case.identifier == "a":
            raise MemoryError("Unable to allocate 3.00 TiB for an array")
        return read_volume(case, reader)

    monkeypatch.setattr(one_model, "read_volume", too_large)
    with pytest.raises(ProblemReport, match=r"^a: out of memory \(3.00 TiB more were needed\)"):
        predict_files(predictor, images, tmp_path / "out")
    assert (tmp_path / "out" / "b.nii.gz").is_file()


def test_a_failing_export_stops_the_run_with_the_case_named(
    predictor: Predictor, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(one_model, "save_labels", full_disk)
    with pytest.raises(
        WorkspaceError, match="^a: no space left on the disk; free some, or choose a folder on another disk"
    ):
        predict_files(predictor, images, tmp_path / "out")


def test_no_thread_is_left_behind(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    predict_files(predictor, images, tmp_path / "out")
    assert threading.active_count() == before


@pytest.mark.parametrize("hold_bytes", [0, 2**30])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_case_with_nan_is_told_and_one_with_inf_refused(
    predictor: Predictor, images: Path, tmp_path: Path, value: float, hold_bytes: int
) -> None:
    """ITK would read such voxels as 0 without a word."""
    image = sitk.ReadImage(str(images / "b_0000.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    array[3, 4, 5] = value
    broken = sitk.GetImageFromArray(array)
    broken.CopyInformation(image)
    sitk.WriteImage(broken, str(images / "b_0000.nii.gz"))
    if np.isnan(value):
        records = predict_files(predictor, images, tmp_path / "out", hold_bytes=hold_bytes)
        [warning] = next(record for record in records if record.case == "b").warnings
        assert "b_0000.nii.gz: 1 voxels are NaN and are read as 0" in warning
    else:
        with pytest.raises(SegwrightError, match=r"^b: .*b_0000.nii.gz: 1 voxels are infinite or larger than 1e\+30"):
            predict_files(predictor, images, tmp_path / "out", hold_bytes=hold_bytes)


def test_parts_make_the_whole(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    whole = predict_files(predictor, images, tmp_path / "whole")
    parts = [predict_files(predictor, images, tmp_path / "parts", part=index, parts=2) for index in (0, 1)]
    assert sorted(record.case for part in parts for record in part) == [record.case for record in whole]
    for record in whole:
        assert (tmp_path / "parts" / record.output.name).read_bytes() == record.output.read_bytes()
    with pytest.raises(ConfigError, match="parts are counted from 0 to 1"):
        predict_files(predictor, images, tmp_path / "parts", part=2, parts=2)


def test_devices_share_the_cases(make_model: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    predictors = [load_predictor(make_model(0), device="cpu", precision="fp32") for _ in range(2)]
    records = predict_files(predictors[0], images, tmp_path / "two", others=predictors[1:])
    alone = predict_files(predictors[0], images, tmp_path / "one")
    assert [record.case for record in records] == [record.case for record in alone]
    for record in alone:
        assert (tmp_path / "two" / record.output.name).read_bytes() == record.output.read_bytes()
    journal = json.loads((tmp_path / "two" / "prediction.json").read_text())
    assert len(journal["cases"]) == len(alone)
    assert journal["peak_memory_mib"] > 10
    assert all(case["tiles"] >= 1 for case in journal["cases"].values())


def test_a_case_whose_image_is_a_dangling_link_is_named_and_the_others_are_predicted(
    predictor: Predictor, images: Path, tmp_path: Path
) -> None:
    (images / "b_0000.nii.gz").unlink()
    (images / "b_0000.nii.gz").symlink_to("../.git/annex/objects/b.nii.gz")
    with pytest.raises(ProblemReport, match=r"b_0000\.nii\.gz: is a link to .*, which does not exist") as caught:
        predict_files(predictor, images, tmp_path / "out")
    assert [problem.case for problem in caught.value.problems] == ["b"]
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_cases_whose_files_would_replace_each_other_are_refused(
    make_model: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    model = make_model(0)
    document = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**document, "labels": {"background": 0, "c": 1, "b_c": 2}}))
    (images / "b_0000.nii.gz").rename(images / "a_b_0000.nii.gz")
    predictor = load_predictor(model, device="cpu", precision="fp32")
    with pytest.raises(SegwrightError, match=r"a_b_c\.nii\.gz: would hold the results of case 'a' and of case 'a_b'"):
        predict_files(predictor, images, tmp_path / "out", probabilities=ProbabilityFormat(kind="nifti"))


@pytest.mark.parametrize("link", ["probabilities", "uncertainty"])
def test_a_link_in_the_output_folder_is_not_followed(
    predictor: Predictor, images: Path, tmp_path: Path, link: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "out" / link).symlink_to(tmp_path / "outside")
    with pytest.raises(WorkspaceError, match="through a link"):
        predict_files(
            predictor, images, tmp_path / "out", probabilities=ProbabilityFormat(kind="nifti"), uncertainty=True
        )
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_in_the_place_of_a_label_map_is_replaced(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "a.nii.gz").symlink_to(tmp_path / "precious")
    predict_files(predictor, images, tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out" / "a.nii.gz").is_symlink()
