"""Names from files, tried at everything that makes a path of one: nothing outside the given folder is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segwright.core.errors import SegwrightError
from segwright.core.files.hashing import file_hash
from segwright.data.crossval import splits
from segwright.data.dataset import load
from segwright.data.description import load_description
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore
from segwright.evaluation.crossval import accumulate, read_crossval
from segwright.inference.export.postprocessing import PostProcessing, process_folder
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.models.selected import read_selected
from segwright.inference.reliability.uncertainty import map_files
from segwright.training.validation.final import PredictionRecord
from segwright.training.validation.reliability import stats_file
from segwright.workspace import Workspace

Act = Callable[[Path, str], Any]

NAMES = [
    "../precious/case",
    "../../precious/case",
    "..",
    "../precious",
    "a/../../precious/case",
    "..\\precious\\case",
    "{absolute}/precious/case",
    "case\x00",
    "case\n",
    "",
    ".",
    "link/case",
    "link",
    "x" * 300,
]
MEASURES = {"Dice": 1, "FN": 0, "FP": 0, "IoU": 1, "TN": 1, "TP": 1, "n_pred": 1, "n_ref": 1}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def description(**changes: Any) -> dict[str, Any]:
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "numTraining": 1}
    return {**document, "file_ending": ".nii.gz", **changes}


def plan_document(**changes: Any) -> dict[str, Any]:
    return {
        "dataset_name": "Dataset001_A",
        "plans_name": "plans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {},
        "foreground_intensity_properties_per_channel": {},
        **changes,
    }


def store_case(work: Path, name: str) -> None:
    store = CaseStore(work / "cases")
    image, label = np.zeros((1, 4, 4, 4), np.float32), np.zeros((1, 4, 4, 4), np.int16)
    store.save(name, image, label, {}, provenance(), patch_size=(4, 4, 4), source_hash="")


def provenance() -> Provenance:
    return Provenance(
        properties={},
        shape_before_cropping=(4, 4, 4),
        box=((0, 4), (0, 4), (0, 4)),
        shape_after_cropping=(4, 4, 4),
        spacing=(1.0, 1.0, 1.0),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
    )


def stage_map(work: Path, name: str) -> None:
    StageMaps(work / "cases").save(name, np.zeros((4, 4, 4), np.uint8), (4, 4, 4), "")


def record(work: Path, name: str) -> None:
    """Remove what a record of other weights lists."""
    write(
        work / "predictions.json", {"weights_hash": "old", "files": {name: 1, f"{name}.nii.gz": 1, f"{name}.json": 1}}
    )
    PredictionRecord.open(work, "new")


def crossval(work: Path, name: str) -> None:
    write(work / "dataset.json", description())
    case = {"metrics": {"1": MEASURES}, "prediction_file": f"{name}.nii.gz", "reference_file": f"{name}.nii.gz"}
    summary = {"foreground_mean": MEASURES, "mean": {"1": MEASURES}, "metric_per_case": [case]}
    write(work / "fold_0" / "validation" / "summary.json", summary)
    (work / "fold_0" / "validation" / "case.nii.gz").touch()
    accumulate(read_crossval(work), work / "gathered")


def workspace(work: Path, *parts: str) -> None:
    place = Workspace.under(work)
    dataset, other = parts
    for path in (
        place.preprocessed_dataset(dataset),
        place.plans_file(dataset, other),
        place.case_folder(dataset, other),
        place.model_folder(dataset, "Trainer", other, "2d"),
        place.ensemble_folder(dataset, other),
    ):
        write(path / "written" if not path.suffix else path, {})


def postprocess(work: Path, name: str) -> None:
    process_folder(PostProcessing(), work / name, work / name, file_ending=".nii.gz", reader="SimpleITKIO")


def every_file(work: Path, name: str) -> None:
    labels = Labels({"background": 0, name: 1})
    for kind in ("npz", "b2nd", "nifti"):
        for file in ProbabilityFormat(kind=kind).files(work, name, labels):
            write(file, {})
    for file in (*map_files(work, name), stats_file(work, name)):
        write(file, {})


ACTS: dict[str, Act] = {
    "splits": lambda work, name: splits.load(write(work / "s.json", [{"train": [name], "val": [name]}])),
    "plans_name": lambda work, name: Plan.from_json(plan_document(plans_name=name)),
    "dataset_name": lambda work, name: Plan.from_json(plan_document(dataset_name=name)),
    "configuration": lambda work, name: Plan.from_json(plan_document(configurations={name: {}})),
    "selection": lambda work, name: read_selected(
        write(
            work / "selection.json",
            {"dataset": "d", "members": [{"name": name, "configuration": "2d", "folds": [0]}]},
        ).parent
    ),
    "file_ending": lambda work, name: load_description(write(work / "dataset.json", description(file_ending=name))),
    "dotted ending": lambda work, name: load_description(
        write(work / "dataset.json", description(file_ending=f".{name}"))
    ),
    "case id": lambda work, name: load(
        write(work / "dataset.json", description(dataset={name: {"images": ["x"], "label": "x"}})).parent
    ),
    "store": store_case,
    "removed from the store": lambda work, name: CaseStore(work / "cases").remove(name),
    "loaded from the store": lambda work, name: CaseStore(work / "cases").load(name),
    "previous stage": stage_map,
    "dataset in the workspace": lambda work, name: workspace(work, name, "plans"),
    "plans in the workspace": lambda work, name: workspace(work, "Dataset001_A", name),
    "files of a case": every_file,
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder to write to, beside files that are not ours, with links to them."""
    precious, folder = tmp_path / "precious", tmp_path / "work"
    for parent in (precious, tmp_path):
        for name in ("case", "case.json", "case.b2nd", "case_seg.b2nd", "case.nii.gz", "case.npz", "plans.json"):
            parent.mkdir(exist_ok=True)
            (parent / name).write_text(f"precious {name}")
    folder.mkdir()
    for place in (folder, folder / "cases", folder / "preprocessed", folder / "results" / "Dataset001_A"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "link").symlink_to(precious)
    return folder


def outside(work: Path) -> dict[str, str]:
    """Return the hash of every file beside the folder."""
    files = [path for path in work.parent.rglob("*") if path.is_file() and work not in path.parents]
    return {str(file): file_hash(file) for file in files}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("act", ACTS)
def test_a_hostile_name_is_refused_where_it_enters(act: str, name: str, work: Path) -> None:
    before = outside(work)
    hostile = name.format(absolute=work.parent)
    may_pass = hostile == "link" or (act, hostile) == ("files of a case", "")  # names like others in some places
    with suppress(SegwrightError) if may_pass else pytest.raises(SegwrightError):
        ACTS[act](work, hostile)
    assert outside(work) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("act", [record, crossval, postprocess])
def test_what_a_document_names_is_neither_removed_nor_replaced(act: Act, name: str, work: Path) -> None:
    before = outside(work)
    with suppress(SegwrightError):
        act(work, name.format(absolute=work.parent))
    assert outside(work) == before


@pytest.mark.parametrize("key", ["data_identifier", "previous_stage", "next_stage"])
@pytest.mark.parametrize("name", ["../x", "/x", "a\nb", ""])
def test_names_in_a_configuration_are_refused(key: str, name: str) -> None:
    with pytest.raises(SegwrightError, match=rf"{key}.*plain name"):
        Configuration.from_json({key: name})


@pytest.mark.parametrize("link", ["preprocessed", "results", "preprocessed/Dataset001_A", "results/Dataset001_A"])
def test_a_work_folder_is_not_left_through_a_link(link: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "work" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    workspace = Workspace.under(tmp_path / "work")
    act = workspace.preprocessed_dataset if "preprocessed" in link else workspace.selected_folder
    with pytest.raises(SegwrightError, match="through a link"):
        act("Dataset001_A")
    if link in ("preprocessed", "results"):
        with pytest.raises(SegwrightError, match="through a link"):
            workspace.require_writable()
        # Named as a tree of its own, as by a variable, the folder may lie anywhere.
        free = replace(workspace, work=None)
        assert free.preprocessed_dataset("Dataset001_A") == free.preprocessed / "Dataset001_A"
    assert not list(outside.iterdir())
