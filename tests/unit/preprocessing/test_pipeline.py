"""One case through the pipeline, and datasets: only what is missing, stale or damaged is made."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from segwright.core.errors import ImageError, ProblemReport
from segwright.data.dataset import Dataset, load
from segwright.data.images.image_io import Volume
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.preprocessing.dataset import preprocess_dataset
from segwright.preprocessing.pipeline import preprocess_case, preprocess_for_prediction, target_shape
from tests.inverse_preprocessing import undo_probabilities

GOLDEN = Path(__file__).parents[2] / "golden" / "preprocessing" / "anisotropic.npz"
CONFIGURATION = "3d_fullres"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as content:
        return dict(content)


@pytest.fixture
def plan(golden: dict[str, Any]) -> Plan:
    return Plan.from_json(json.loads(str(golden["plans"])))


@pytest.fixture
def folder(golden: dict[str, Any], tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_Golden"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(3):
        spacing = golden[f"spacing_{index}"]
        write(folder / f"imagesTr/case{index}_0000.nrrd", golden[f"image_{index}"][0], spacing)
        write(folder / f"labelsTr/case{index}.nrrd", golden[f"label_{index}"], spacing)
    (folder / "dataset.json").write_text(str(golden["dataset_json"]))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "preprocessed")


def write(path: Path, array: Any, spacing: Any) -> None:
    picture = SimpleITK.GetImageFromArray(array)
    picture.SetSpacing([float(value) for value in spacing[::-1]])
    SimpleITK.WriteImage(picture, str(path))


def volume(golden: dict[str, Any], index: int = 0) -> Volume:
    spacing = tuple(golden[f"spacing_{index}"].tolist())
    return Volume(array=golden[f"image_{index}"].astype(np.float32), spacing=spacing, properties={"reader": "x"})


def run(folder: Path, plan: Plan, store: CaseStore) -> tuple[tuple[str, ...], tuple[str, ...]]:
    report = preprocess_dataset(load(folder), plan, CONFIGURATION, store, workers=2)
    return report.done, report.skipped


def test_a_dataset_is_stored_as_the_reference_does(
    folder: Path, plan: Plan, store: CaseStore, golden: dict[str, Any]
) -> None:
    assert run(folder, plan, store) == (("case0", "case1", "case2"), ())
    for index in range(3):
        case = store.load(f"case{index}")
        assert np.abs(case.image[...] - golden[f"{CONFIGURATION}_{index}_image"]).max() < 1e-4
        assert np.array_equal(case.label[...], golden[f"{CONFIGURATION}_{index}_seg"])
        for position, voxels in enumerate(case.class_locations.values()):
            assert np.array_equal(np.asarray(voxels)[:50], golden[f"{CONFIGURATION}_{index}_voxels_{position}"])


def test_a_second_run_does_nothing(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert run(folder, plan, store) == ((), ("case0", "case1", "case2"))
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before


def test_the_input_is_not_touched(folder: Path, plan: Plan, store: CaseStore) -> None:
    def state() -> list[Any]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))

    before = state()
    run(folder, plan, store)
    assert state() == before


def test_only_a_changed_case_is_redone(folder: Path, plan: Plan, store: CaseStore, golden: dict[str, Any]) -> None:
    run(folder, plan, store)
    write(folder / "labelsTr/case1.nrrd", golden["label_1"] * 0, golden["spacing_1"])
    assert run(folder, plan, store) == (("case1",), ("case0", "case2"))
    assert not store.load("case1").label[...].any()


def test_a_copy_of_the_same_files_is_recognised(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    for path in folder.rglob("*.nrrd"):
        os.utime(path, ns=(1, 1))
    assert run(folder, plan, store) == ((), ("case0", "case1", "case2"))


def test_a_damaged_case_is_redone(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    (store.folder / "case2_seg.b2nd").write_bytes(b"x")
    assert run(folder, plan, store) == (("case2",), ("case0", "case1"))


def test_a_half_written_case_is_made(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    (store.folder / "case0.json").unlink()
    assert run(folder, plan, store) == (("case0",), ("case1", "case2"))


def test_another_plan_makes_everything_anew(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    document = plan.to_json()
    document["configurations"][CONFIGURATION]["spacing"] = [6.0, 1.0, 1.0]
    assert run(folder, Plan.from_json(document), store)[0] == ("case0", "case1", "case2")


def test_what_does_not_change_the_arrays_keeps_them(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    document = plan.to_json()
    document["configurations"][CONFIGURATION]["batch_size"] = 77
    assert run(folder, Plan.from_json(document), store)[0] == ()


def test_a_case_that_is_gone_is_taken_out(folder: Path, plan: Plan, store: CaseStore) -> None:
    run(folder, plan, store)
    (folder / "imagesTr/case1_0000.nrrd").unlink()
    (folder / "labelsTr/case1.nrrd").unlink()
    run(folder, plan, store)
    assert store.identifiers() == ("case0", "case2")


def test_broken_cases_are_reported_after_the_others_are_done(
    folder: Path, plan: Plan, store: CaseStore, golden: dict[str, Any]
) -> None:
    dataset: Dataset = load(folder)
    (folder / "imagesTr/case0_0000.nrrd").write_bytes(b"no image")
    write(folder / "labelsTr/case1.nrrd", golden["label_1"][1:], golden["spacing_1"])
    with pytest.raises(ProblemReport) as caught:
        preprocess_dataset(dataset, plan, CONFIGURATION, store, workers=2)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "case0_0000.nrrd" in lines[0]
    assert "case1" in lines[1]
    assert "same grid" in lines[1]
    assert store.identifiers() == ("case2",)


def test_a_missing_file_is_named(folder: Path, plan: Plan, store: CaseStore) -> None:
    dataset = load(folder)
    (folder / "labelsTr/case2.nrrd").unlink()
    with pytest.raises(ProblemReport, match=r"case2\.nrrd: cannot be read"):
        preprocess_dataset(dataset, plan, CONFIGURATION, store, workers=1)


def test_cases_with_clashing_files_are_refused(folder: Path, plan: Plan, store: CaseStore) -> None:
    for name, ending in (("imagesTr", "_0000.nrrd"), ("labelsTr", ".nrrd")):
        shutil.copy(folder / name / f"case0{ending}", folder / name / f"case0_seg{ending}")
    document = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**document, "numTraining": 4}))
    with pytest.raises(ProblemReport, match="case0_seg: its preprocessed files would replace those of case case0"):
        preprocess_dataset(load(folder), plan, CONFIGURATION, store)


def test_without_a_label_the_image_is_the_same(golden: dict[str, Any], plan: Plan) -> None:
    prepared = preprocess_case(volume(golden), None, plan, plan.configuration(CONFIGURATION))
    assert prepared.label is None
    assert np.abs(prepared.image - golden[f"{CONFIGURATION}_0_image"]).max() < 1e-4


def test_the_input_array_is_not_changed(golden: dict[str, Any], plan: Plan) -> None:
    given = volume(golden)
    given.array.flags.writeable = False
    preprocess_case(given, golden["label_0"][None], plan, plan.configuration(CONFIGURATION))


def test_label_on_another_grid_is_refused(golden: dict[str, Any], plan: Plan) -> None:
    with pytest.raises(ImageError, match="same grid"):
        preprocess_case(volume(golden), golden["label_1"][None], plan, plan.configuration(CONFIGURATION))


@pytest.mark.parametrize("predicts", [True, False])
@pytest.mark.parametrize("spacing", [20.0, 100000.0])
def test_a_spacing_that_needs_far_more_memory_than_in_training_is_refused(
    golden: dict[str, Any], plan: Plan, predicts: bool, spacing: float
) -> None:
    enormous = replace(volume(golden), spacing=(spacing,) * 3)
    configuration = plan.configuration(CONFIGURATION)
    with pytest.raises(ImageError, match=r"needs .* GiB \(.* GiB are free\) and is .* times the size of a training"):
        preprocess_for_prediction(enormous, plan, configuration) if predicts else preprocess_case(
            enormous, None, plan, configuration
        )


def test_a_spacing_far_from_those_in_training_is_told(
    golden: dict[str, Any], plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    usual = volume(golden)
    preprocess_for_prediction(usual, plan, plan.configuration(CONFIGURATION))
    assert not caplog.records
    preprocess_for_prediction(replace(usual, spacing=(60.0, 0.05, 1.0)), plan, plan.configuration(CONFIGURATION))
    assert "at spacing (60, 0.05, 1): the median training case has spacing (6, 0.9, 1); check" in caplog.text


def test_a_case_that_would_vanish_is_refused(golden: dict[str, Any], plan: Plan) -> None:
    tiny = Volume(array=np.ones((1, 1, 4, 4), dtype=np.float32), spacing=(1.0, 0.1, 0.1), properties={})
    with pytest.raises(ImageError, match="no voxel at the target spacing"):
        preprocess_case(tiny, None, plan, plan.configuration(CONFIGURATION))


@pytest.mark.parametrize(
    ("shape", "spacing", "new", "expected"),
    [((5,), (1.0,), (2.0,), (2,)), ((7,), (1.0,), (2.0,), (4,)), ((30, 20), (1, 0.5), (0.5, 1), (60, 10))],
)
def test_target_shape_rounds_half_to_even(shape: Any, spacing: Any, new: Any, expected: Any) -> None:
    assert target_shape(shape, spacing, new) == expected


@pytest.mark.parametrize("has_regions", [False, True])
def test_probabilities_outside_the_crop(golden: dict[str, Any], plan: Plan, has_regions: bool) -> None:
    image = np.zeros((1, 8, 20, 22), dtype=np.float32)
    image[:, 2:7, 3:15, 4:20] = 5
    framed = Volume(array=image, spacing=(6.0, 0.9, 1.0), properties={})
    provenance = preprocess_case(framed, None, plan, plan.configuration(CONFIGURATION)).provenance
    inside = np.full((3, *provenance.shape_after_cropping), 0.25, dtype=np.float32)
    whole = undo_probabilities(inside, provenance, has_regions=has_regions)
    assert whole.shape == (3, 8, 20, 22)
    assert (whole[:, 2:7, 3:15, 4:20] == 0.25).all()
    assert whole[:, 0, 0, 0].tolist() == [0.0 if has_regions else 1.0, 0, 0]


@pytest.mark.parametrize(
    ("value", "words"), [(7.0, "unexpected label value 7; dataset.json declares 0, 1"), (1.9, r"1\.9")]
)
def test_a_label_changed_into_something_undeclared_is_refused_by_its_file(
    folder: Path, plan: Plan, store: CaseStore, golden: dict[str, Any], value: float, words: str
) -> None:
    changed = golden["label_0"].astype(np.float32)
    changed[changed == 1] = value
    write(folder / "labelsTr/case0.nrrd", changed, golden["spacing_0"])
    with pytest.raises(ProblemReport, match=rf"case case0: .*labelsTr/case0\.nrrd: .*{words}"):
        run(folder, plan, store)
    assert store.identifiers() == ("case1", "case2")


def test_a_label_value_that_is_almost_whole_is_rounded_not_cut_off(
    folder: Path, plan: Plan, store: CaseStore, golden: dict[str, Any]
) -> None:
    run(folder, plan, store)
    wanted = np.asarray(store.load("case0").label)
    write(folder / "labelsTr/case0.nrrd", golden["label_0"].astype(np.float32) * 0.9999999, golden["spacing_0"])
    assert run(folder, plan, store)[0] == ("case0",)
    assert np.array_equal(store.load("case0").label, wanted)
