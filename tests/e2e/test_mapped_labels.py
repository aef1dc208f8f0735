"""A dataset whose label files have other values than dataset.json declares: `label_map` gives the same results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journeys import Journey, call

from segwright import Trainer, api
from segwright.cli.nnunet.preparing import REFERENCES, copy_references
from segwright.core.errors import WorkspaceError
from segwright.core.files.hashing import file_hash
from segwright.data.dataset import load
from segwright.data.description import load_description
from segwright.data.images.image_io import read_label, write_labels
from segwright.data.preprocessed.store import CaseStore
from segwright.evaluation.scores import Scores
from segwright.report.case_images import ImageSources, load_case
from segwright.workspace import Workspace

NAME = "Dataset007_Tiny"
OTHER = {1: 255, 2: 100}
"""Values in the files for the two labels."""


def set_map(raw: Path, label_map: dict[int, int]) -> None:
    document = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**document, "label_map": label_map}))


@pytest.fixture
def raw(journey: Journey, tmp_path: Path) -> Path:
    """The dataset with other values in its label files."""
    folder = Path(shutil.copytree(journey.dataset, tmp_path / NAME))
    dataset = load(folder)
    for case in dataset.cases:
        assert case.label is not None
        label = read_label(case.label, dataset.reader, label_map=OTHER)
        write_labels(label.array[0].astype(np.uint8), case.label, label.properties, dataset.reader)
    set_map(folder, {value: label for label, value in OTHER.items()})
    return folder


def scores(file: Path) -> list[Any]:
    cases = json.loads(file.read_text())["metric_per_case"]
    return [{key: value["Dice"] for key, value in case["metrics"].items()} for case in cases]


def test_plan_and_preprocessed_cases_are_those_of_the_labels(journey: Journey, raw: Path, tmp_path: Path) -> None:
    before = {file: file_hash(file) for file in (raw / "labelsTr").iterdir()}
    workspace = Workspace.under(tmp_path / "own")
    assert api.check(raw).errors == ()
    api.plan(raw, workspace=workspace)
    for name in ("dataset_fingerprint.json", "splits_final.json"):
        assert (workspace.preprocessed / NAME / name).read_bytes() == (journey.preprocessed / name).read_bytes()
    api.preprocess(raw, workspace=workspace, configurations=["3d_fullres"])
    [folder] = (path.name for path in journey.preprocessed.iterdir() if path.name.endswith("3d_fullres"))
    own, plain = CaseStore(workspace.preprocessed / NAME / folder), CaseStore(journey.preprocessed / folder)
    for case in plain.identifiers():
        assert np.array_equal(own.load(case).label[...], plain.load(case).label[...])
        assert own.load(case).class_locations.keys() == plain.load(case).class_locations.keys()
    assert {file: file_hash(file) for file in (raw / "labelsTr").iterdir()} == before
    set_map(raw, {255: 2, 100: 1})
    with pytest.raises(WorkspaceError, match="channels or labels have changed since"):
        Trainer.for_dataset(raw, "3d_fullres", workspace=workspace, device="cpu")
    done = api.preprocess(raw, workspace=workspace, configurations=["3d_fullres"])["3d_fullres"]
    assert len(done.done) == len(before)
    assert Trainer.for_dataset(raw, "3d_fullres", workspace=workspace, device="cpu").labels.label_map == {
        255: 2,
        100: 1,
    }


def test_references_beside_preprocessed_data_hold_labels(raw: Path, tmp_path: Path) -> None:
    workspace = Workspace.under(tmp_path / "own")
    folder = workspace.preprocessed_dataset(NAME) / REFERENCES

    def values() -> list[list[int]]:
        copy_references(workspace, raw)
        copies = sorted(folder.glob("*.nii.gz"))
        assert [file.name for file in copies] == sorted(file.name for file in (raw / "labelsTr").iterdir())
        return [np.unique(read_label(file, "SimpleITKIO").array).astype(int).tolist() for file in copies]

    for label_map, expected in (({255: 1, 100: 2}, {0, 1, 2}), ({255: 2, 100: 0}, {0, 2}), ({}, {0, 100, 255})):
        set_map(raw, label_map)
        assert {value for found in values() for value in found} == expected
    times = [file.stat().st_mtime_ns for file in sorted(folder.iterdir())]
    values()
    assert [file.stat().st_mtime_ns for file in sorted(folder.iterdir())] == times


def test_predictions_are_scored_against_labels_and_anew_with_another_map(
    journey: Journey, raw: Path, tmp_path: Path
) -> None:
    work = Path(shutil.copytree(journey.work, tmp_path / "work"))
    fold = work / "results" / NAME / "Trainer__nnUNetPlans__3d_fullres" / "fold_0"
    trained = scores(fold / "validation" / "summary.json")
    api.evaluate(raw / "labelsTr", fold / "validation", output=tmp_path / "summary.json")
    assert scores(tmp_path / "summary.json") == trained

    arguments = ("--work", work, "run", raw, "--folds", "0", "--config", "3d_fullres", "--device", "cpu")
    assert "labels of" in call(*arguments).stderr
    assert scores(fold / "validation" / "summary.json") == trained

    files = {"predictions": [fold / "validation"], "raw": raw, "files": {}, "store": None, "datasets": [raw, work]}
    sources = ImageSources(description=load_description(raw / "dataset.json"), reader="SimpleITKIO", **files)
    shown = load_case(Scores.load(fold / "validation" / "summary.json").metric_per_case[0], sources)
    assert shown.is_raw
    assert set(np.unique(shown.reference)) <= {0, *OTHER}

    set_map(raw, {255: 2, 100: 1})
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert f"since {fold} was trained" in done.stderr
    changed = scores(fold / "validation" / "summary.json")
    assert changed != trained
    assert done.stderr.count("scoring held-out cases with labels that changed") == 1
    assert "scoring held-out cases" not in call(*arguments).stderr
    set_map(raw, {})
    refused = call(*arguments)
    assert refused.exit_code == 1
    assert "unexpected label value 100, 255" in refused.output
