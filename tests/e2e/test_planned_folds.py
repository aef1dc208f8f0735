"""Planning writes folds: by groups and labels, with one line about names that look like scans of one subject."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from journeys import call

from segwright import api
from segwright.api.session import open_session
from segwright.api.splitting import dataset_splits, split_options, warn_of_unused_cases
from segwright.core.errors import ConfigError, DatasetError
from segwright.data.crossval.splits import default_splits, load
from segwright.data.phantom import write_dataset
from segwright.workspace import Workspace

Plan = Callable[..., tuple[list[set[str]], str]]
"""Plans the dataset with options; returns what each fold holds out, and what was logged."""
NAMES = [f"patient{number:02}_frame{frame}" for number in range(1, 7) for frame in (1, 2)]
BY_NAME = r"regex:patient\d+"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with two scans of each of six patients."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset001_Scans"
    write_dataset(folder, num_training=len(NAMES), num_test=0, edge=16)
    for index, name in enumerate(NAMES, start=1):
        (folder / f"imagesTr/phantom_{index:03}_0000.nii.gz").rename(folder / f"imagesTr/{name}_0000.nii.gz")
        (folder / f"labelsTr/phantom_{index:03}.nii.gz").rename(folder / f"labelsTr/{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def measured(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the fingerprint and a plan of the dataset, without splits."""
    work = tmp_path_factory.mktemp("work")
    api.plan(raw, workspace=Workspace.under(work))
    Workspace.under(work).splits_file(raw.name).unlink()
    return work


@pytest.fixture
def splits(measured: Path, raw: Path, tmp_path: Path) -> Path:
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return Workspace.under(tmp_path).splits_file(raw.name)


@pytest.fixture
def plan(raw: Path, tmp_path: Path, splits: Path) -> Plan:
    def planned(*arguments: str) -> tuple[list[set[str]], str]:
        done = call("--work", tmp_path, "plan", raw, *arguments)
        assert done.exit_code == 0, done.output
        return [set(fold.val) for fold in load(splits)], done.stderr

    return planned


def patients(fold: set[str]) -> set[str]:
    return {name.split("_")[0] for name in fold}


def test_planning_writes_nnunet_s_folds_and_says_how_to_group_scans(plan: Plan) -> None:
    folds, log = plan()
    assert folds == [set(fold.val) for fold in default_splits(NAMES)]
    said = [line for line in log.splitlines() if "by their names" in line]
    assert len(said) == 1
    assert "cases such as patient01_frame1 and patient01_frame2 are of one subject" in said[0]
    assert f"--groups '{BY_NAME}' keeps each in one fold" in said[0]
    assert "by their names" not in plan("--groups", "none")[1]
    assert "by their names" not in plan()[1]


def test_groups_of_a_plan_hold_for_what_follows(plan: Plan, raw: Path, tmp_path: Path, splits: Path) -> None:
    folds = plan("--groups", BY_NAME)[0]
    assert sorted(len(fold) for fold in folds) == [2, 2, 2, 2, 4]
    assert sum(len(patients(fold)) for fold in folds) == 6
    assert plan()[0] == folds
    assert plan("--stratify")[0] == plan()[0]
    assert sum(len(patients(fold)) for fold in plan("--no-stratify")[0]) == 6
    table = tmp_path / "table.csv"
    table.write_text("case,site\n" + "\n".join(f"{name},{name[-1]}" for name in NAMES))
    api.plan(raw, workspace=Workspace.under(tmp_path), groups=f"{table}:site")
    assert [len(fold.val) for fold in load(splits)] == [6, 6]


def test_folds_that_are_made_anew_are_not_called_edited(
    plan: Plan, raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan()
    options = split_options(BY_NAME, stratify=None)
    with caplog.at_level("INFO"):
        warn_of_unused_cases(open_session(raw, Workspace.under(tmp_path), split_options=options))
    assert not caplog.records


def test_groups_in_the_datasets_description_are_used(raw: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(raw, tmp_path / raw.name))
    document = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**document, "groups": BY_NAME}))
    folds = dataset_splits(open_session(copy, Workspace.under(tmp_path)))
    assert sum(len(patients({*fold.val})) for fold in folds) == 6


def test_groups_are_refused_before_any_work(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no group for case patient01_frame1"):
        api.plan(raw, workspace=Workspace.under(tmp_path), groups={"patient01": "1"})
    with pytest.raises(DatasetError, match=r"absent\.csv: no such file"):
        api.plan(raw, workspace=Workspace.under(tmp_path), groups="absent.csv:patient")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_splits_with_unknown_cases_are_refused_and_cases_in_no_fold_are_noted(
    plan: Plan, splits: Path, raw: Path, tmp_path: Path
) -> None:
    folds = [{"train": NAMES[:4], "val": NAMES[4:6]}, {"train": NAMES[4:8], "val": NAMES[:2]}]
    splits.write_text(json.dumps(folds))
    assert "4 cases of Dataset001_Scans are in no fold" in plan()[1]
    assert json.loads(splits.read_text()) == folds
    with pytest.raises(ConfigError, match="edited or made by another program"):
        api.plan(raw, workspace=Workspace.under(tmp_path), stratify=True)
    folds[1]["val"] = ["patient99_frame1"]
    splits.write_text(json.dumps(folds))
    with pytest.raises(DatasetError, match=r"splits_final\.json: fold 1 names patient99_frame1, which the dataset"):
        api.plan(raw, workspace=Workspace.under(tmp_path))


def test_a_plan_without_images_has_no_groups(raw: Path) -> None:
    given = ["--from-fingerprint", "f.json", "--dataset-json", raw / "dataset.json"]
    done = call("plan", *given, "--groups", BY_NAME)
    assert done.exit_code == 1
    assert "folds need cases; give DATASET instead of --from-fingerprint" in done.stderr
