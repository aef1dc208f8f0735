"""Pairs of structures that are mirror images of each other, found in label maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from segwright import api
from segwright.cli.main import app
from segwright.core.files.json_documents import write_json
from segwright.data import checks, fingerprint
from segwright.data.dataset import load
from segwright.data.fingerprint import Fingerprint, extract
from segwright.data.laterality import FoundPairs, LabelPairs, PairFinder
from segwright.data.symmetry import (
    MAX_VOXELS,
    CaseSymmetry,
    SymmetricPairs,
    _steps,
    find_symmetric_pairs,
    measure_symmetry,
)
from segwright.workspace import Workspace

SHAPE = (24, 28, 40)
TO_LEFT = (2, True)
PAIRS = ((1, 2), (3, 4), (5, 6))
"""Right and left structures of `body`; 7 and 8 lie in the middle."""
LEFT_FIRST = tuple((left, right) for right, left in PAIRS)
LABELS = {"background": 0} | {f"structure {value}": value for value in range(1, 9)}


def blob(label: npt.NDArray[np.uint8], value: int, centre: Sequence[float], radii: Sequence[float]) -> None:
    grid = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij")) + 0.5
    squares = [((axis - middle) / radius) ** 2 for axis, middle, radius in zip(grid, centre, radii, strict=True)]
    label[np.sum(squares, axis=0) < 1] = value


def body(seed: int, *, tilt: float = 0.0, left_out: Sequence[int] = ()) -> npt.NDArray[np.uint8]:
    """Return a label map (Z, Y, X) of a body with three pairs; X runs to the left.

    Args:
        seed: of positions and sizes.
        tilt: of the body about the axis Y, degrees.
        left_out: labels that are missing.
    """
    random = np.random.default_rng(seed)
    label = np.zeros(SHAPE, dtype=np.uint8)
    centre = np.array(SHAPE) / 2 + (0, 0, random.uniform(-2, 2))
    sine, cosine = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
    rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    for (right, left), place in {(1, 2): (-5, -6, 8.5), (3, 4): (4, -1, 11), (5, 6): (-2, 8, 10)}.items():
        size = 3.0 if right < 5 else 4.2
        for value, sign in ((right, -1), (left, 1)):
            offset = np.multiply(place, (1, 1, sign)) + random.uniform(-0.5, 0.5, size=3)
            blob(label, value, centre + rotation @ offset, size + random.uniform(0, 0.5, size=3))
    for value, place, radii in ((7, (0, -2, 0), (6, 3, 4.5)), (8, (0, 6, 0), (4, 3, 3.5))):
        blob(label, value, centre + rotation @ place, radii)
    label[np.isin(label, left_out)] = 0
    return label


def measured(
    labels: Sequence[npt.NDArray[Any]], left_axis: tuple[int, bool] = TO_LEFT, values: Sequence[int] = range(1, 9)
) -> list[CaseSymmetry]:
    cases = [measure_symmetry(label, (1.0, 1.0, 1.0), left_axis, tuple(values)) for label in labels]
    return [case for case in cases if case is not None]


def pairs_of(labels: Sequence[npt.NDArray[Any]], **options: Any) -> SymmetricPairs | None:
    return find_symmetric_pairs(measured(labels, **options))


@pytest.mark.parametrize("tilt", [0.0, 10.0, -15.0])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_found_in_straight_and_tilted_bodies(seed: int, tilt: float) -> None:
    found = pairs_of([body(10 * seed + index, tilt=tilt) for index in range(3)])
    assert found is not None
    assert found.pairs == LEFT_FIRST
    assert found.are_certain
    assert found.least_overlap > 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_the_axis_and_its_direction_decide_what_is_left(axis: int, flip: bool) -> None:
    labels = [np.moveaxis(body(index), 2, axis) for index in range(3)]
    if flip:
        labels = [np.flip(label, axis) for label in labels]
    found = pairs_of(labels, left_axis=(axis, not flip))
    assert found is not None
    assert found.pairs == LEFT_FIRST


@pytest.mark.parametrize("axis", [0, 1])
def test_another_axis_than_left_right_shows_no_pairs(axis: int) -> None:
    assert pairs_of([body(index) for index in range(3)], left_axis=(axis, True)) is None


def test_voxels_need_not_be_cubes() -> None:
    cases = [measure_symmetry(body(index)[::2], (2.0, 1.0, 1.0), TO_LEFT, tuple(range(1, 9))) for index in range(3)]
    found = find_symmetric_pairs([case for case in cases if case is not None])
    assert found is not None
    assert found.pairs == LEFT_FIRST


@pytest.mark.parametrize(("left_out", "are_certain"), [([1, 2, 7], True), ([2], True), ([2, 4, 6], False)])
def test_pairs_are_certain_if_nearly_all_of_every_case_is_symmetric(left_out: list[int], are_certain: bool) -> None:
    found = pairs_of([*(body(index) for index in range(4)), body(4, left_out=left_out)])
    assert found is not None
    assert found.pairs == LEFT_FIRST
    assert found.are_certain == are_certain


def test_absent_pairs_are_not_invented() -> None:
    found = pairs_of([body(index, left_out=[1, 2]) for index in range(3)])
    assert found is not None
    assert found.pairs == LEFT_FIRST[1:]
    assert not found.are_certain  # two pairs


def test_views_of_one_side_show_nothing() -> None:
    assert pairs_of([body(index)[:, :, : SHAPE[2] // 2] for index in range(5)]) is None


def test_a_view_that_cuts_a_structure_off_leaves_pairs_as_a_proposal() -> None:
    cut = [body(index)[:, 7:] if index == 0 else body(index) for index in range(5)]
    found = pairs_of(cut)
    assert found is not None
    assert set(found.pairs) >= {(6, 5)}
    assert set(found.pairs) <= set(LEFT_FIRST)


@pytest.mark.parametrize("values", [(7, 8), (1, 3, 5), (1, 6, 7)])
def test_structures_without_counterparts_show_nothing(values: tuple[int, ...]) -> None:
    assert pairs_of([body(index) for index in range(5)], values=values) is None


def test_one_pair_counts_only_if_it_is_most_of_what_is_labelled() -> None:
    bodies = [body(index) for index in range(3)]
    alone = pairs_of(bodies, values=(1, 2))
    assert alone is not None
    assert alone.pairs == ((2, 1),)
    assert not alone.are_certain
    for label in bodies:
        label[2:20, 24:, 2:12] = 3  # a large structure on one side
    assert pairs_of(bodies, values=(1, 2, 3)) is None


def test_two_cases_are_too_few() -> None:
    assert pairs_of([body(0), body(1)]) is None


def test_labels_that_change_sides_are_not_certain() -> None:
    found = pairs_of([body(0), body(1), body(2), np.flip(body(3), 2)])
    assert found is not None
    assert found.pairs == LEFT_FIRST
    assert not found.are_certain


def test_random_structures_show_no_pairs() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        centres = random.uniform(5, 20, size=(8, 3))
        labels = []
        for _ in range(4):
            label = np.zeros(SHAPE, dtype=np.uint8)
            for value, centre in enumerate(centres, start=1):
                blob(label, value, centre + random.normal(size=3), random.uniform(3, 5, size=3))
            labels.append(label)
        found = pairs_of(labels)
        assert found is None or not found.are_certain


def test_values_beyond_the_declared_ones_are_background() -> None:
    labels = [body(index).astype(np.float32) for index in range(3)]
    for label in labels:
        label[0, 0, :5] = [9, 255, 70_000, -1, 12]
    found = pairs_of(labels)
    assert found is not None
    assert found.pairs == LEFT_FIRST


def test_large_label_maps_are_read_in_steps_along_fine_axes() -> None:
    steps = _steps((30, 1024, 1024), (5.0, 0.4, 0.4))
    assert steps[0] == 1
    assert 30 * np.prod([-(-1024 // step) for step in steps[1:]]) <= MAX_VOXELS


def stored(array: npt.NDArray[Any], code: str) -> nibabel.Nifti1Image:
    """Return an image of an array (X, Y, Z) in RAS+ that is stored along the axes of an orientation code."""
    codes = nibabel.orientations.axcodes2ornt(tuple(code))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), codes)
    return nibabel.Nifti1Image(array, np.eye(4)).as_reoriented(turn)


def write_bodies(folder: Path, codes: Sequence[str], labels: dict[str, Any] = LABELS, **more: Any) -> None:
    """Write a dataset of bodies, each stored along the axes of an orientation code, or of two: of image and label."""
    for index, code in enumerate(codes):
        array = np.flip(body(index), 2).transpose(2, 1, 0)  # X, Y, Z, to the right
        files = (f"imagesTr/b_{index}_0000.nii.gz", f"labelsTr/b_{index}.nii.gz")
        for file, own in zip(files, (code[:3], code[-3:]), strict=True):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(stored(array, own), folder / file)
    document = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": len(codes), "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", document | more)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "TOTAL_SAMPLES", 100)


NAMED = tuple((f"structure {left}", f"structure {right}") for left, right in LEFT_FIRST)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("reader", [None, "NibabelIO", "NibabelIOWithReorient"])
def test_check_and_fingerprint_find_pairs_in_any_orientation(tmp_path: Path, reader: str | None) -> None:
    more = {} if reader is None else {"overwrite_image_reader_writer": reader}
    write_bodies(tmp_path, ["RAS", "LPS", "PIR", "SAL", "RAS SAL"], **more)
    findings = checks.check(tmp_path)
    assert findings.is_clean
    assert findings.mirror_pairs is not None
    assert findings.mirror_pairs.pairs == NAMED
    measured = extract(load(tmp_path))
    assert measured.mirror_pairs == findings.mirror_pairs
    measured.save(tmp_path / "fingerprint.json")
    assert Fingerprint.load(tmp_path / "fingerprint.json").mirror_pairs == findings.mirror_pairs


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        (LABELS, {"label_pairs": []}),
        (LABELS, {"label_pairs": [["structure 1", "structure 2"]]}),
        (LABELS | {"left hip": 9, "right hip": 10}, {}),
        (LABELS | {"all": [1, 2, 3, 4, 5, 6, 7, 8]}, {"regions_class_order": [1, 2, 3, 4, 5, 6, 7, 8, 1]}),
    ],
)
def test_declared_and_named_pairs_and_regions_are_left_alone(
    tmp_path: Path, labels: dict[str, Any], more: dict[str, Any]
) -> None:
    write_bodies(tmp_path, ["RAS"] * 3, labels, **more)
    assert checks.check(tmp_path).mirror_pairs is None


def test_the_declaration_can_be_pasted() -> None:
    found = FoundPairs(pairs=(("a 1", "b"), ("c", "d")), cases=3, least_overlap=0.7, certain=False)
    assert found.declaration() == '"label_pairs": [["a 1", "b"], ["c", "d"]]'
    assert found.declaration() in found.advice()


@pytest.mark.usefixtures("few_draws")
def test_a_new_plan_swaps_certain_pairs(tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset001_Body"
    write_bodies(dataset, ["RAS"] * 3)
    made = api.plan(dataset, workspace=Workspace.under(tmp_path / "work"))
    assert LabelPairs.of_plan(made) == LabelPairs(pairs=NAMED, axes=(2,), swap=True)
    assert '"label_pairs": [["structure 2", "structure 1"]' in api.explain(made)


@pytest.mark.usefixtures("few_draws")
def test_a_plan_from_before_the_search_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, workspace = tmp_path / "Dataset001_Body", Workspace.under(tmp_path / "work")
    write_bodies(dataset, ["RAS"] * 3)
    with monkeypatch.context() as without_search:
        without_search.setattr(PairFinder, "found", lambda _: None)
        before = api.plan(dataset, workspace=workspace)
    assert api.plan(dataset, workspace=workspace) == before
    assert LabelPairs.of_plan(before) is None


def test_check_prints_the_line_for_dataset_json(tmp_path: Path) -> None:
    write_bodies(tmp_path, ["RAS"] * 3)
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "note: 3 pairs of labels are mirror images in 3 cases" in done.output
    assert '"label_pairs": [["structure 2", "structure 1"]' in done.output
    as_json = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    assert json.loads(as_json.stdout)["mirror_pairs"]["certain"] is True
