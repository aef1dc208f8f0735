"""Plans that trainings or preprocessed data use are replaced only when that is asked for."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segwright.api import preparing
from segwright.api.plans.making import PlanOptions, make_plan
from segwright.api.session import open_session
from segwright.core.errors import PlanError
from segwright.data.phantom import write_dataset
from segwright.workspace import Workspace

pytestmark = pytest.mark.slow

NAME = "Dataset007_Tiny"
CHANGES = ({"reorient": True}, {"spacing": (2.0, 2.0, 2.0)})


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    write_dataset(work / "raw" / NAME, num_training=2, num_test=0, edge=16)
    preparing.plan(NAME, workspace=Workspace.under(work))
    return work


@pytest.fixture
def work(planned: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(planned, tmp_path, dirs_exist_ok=True)
    workspace = Workspace.under(tmp_path)
    preparing.plan(NAME, workspace=workspace)  # the copied dataset lies elsewhere
    return workspace


def _train(work: Workspace, plans: str = "nnUNetPlans") -> None:
    file = work.model_folder(NAME, "Trainer", plans, "2d") / "fold_1" / "checkpoint_latest.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()


def _preprocess(work: Workspace) -> None:
    file = work.case_folder(NAME, "nnUNetPlans_3d_fullres") / "case.b2nd"
    file.parent.mkdir(parents=True)
    file.touch()


def _document(work: Workspace) -> dict[str, Any]:
    return json.loads(work.plans_file(NAME, "nnUNetPlans").read_text(encoding="utf-8"))


@pytest.mark.parametrize("change", CHANGES)
def test_plans_that_trainings_use_are_not_replaced(work: Workspace, change: dict[str, Any]) -> None:
    _train(work)
    before = _document(work)
    with pytest.raises(
        PlanError, match=r"Trainer__nnUNetPlans__2d/fold_1 uses them; keep both with 'segwright plan --name nnUNetPl"
    ) as e:
        preparing.plan(NAME, workspace=work, options=PlanOptions(**change))
    assert "'segwright plan --name nnUNetPlans_2', or replace them with 'segwright plan --overwrite'" in str(e.value)
    assert _document(work) == before
    preparing.plan(NAME, workspace=work, options=PlanOptions(**change, name="nnUNetPlans_2"))
    assert _document(work) == before
    preparing.plan(NAME, workspace=work, options=PlanOptions(**change), force=True)
    assert _document(work) != before


def test_plans_that_preprocessed_cases_use_are_not_replaced(work: Workspace) -> None:
    _preprocess(work)
    with pytest.raises(PlanError, match="segwright_nnUNetPlans_3d_fullres uses them"):
        preparing.plan(NAME, workspace=work, options=PlanOptions(reorient=True))


def test_plans_that_nothing_uses_are_replaced(work: Workspace) -> None:
    _train(work, plans="others")
    preparing.plan(NAME, workspace=work, options=PlanOptions(reorient=True))
    assert _document(work)["image_reader_writer"].endswith("WithReorient")


def test_options_that_decide_the_same_are_no_change(work: Workspace) -> None:
    _train(work)
    plan = preparing.plan(NAME, workspace=work, options=PlanOptions(gpu_memory_gb=100.0))
    assert plan.segwright["gpu_memory_gb"] == 100


def test_the_same_plans_are_made_again_although_they_are_used(work: Workspace) -> None:
    _train(work)
    _preprocess(work)
    before = _document(work)
    (work.preprocessed_dataset(NAME) / "dataset_fingerprint.json").unlink()
    preparing.plan(NAME, workspace=work)
    assert _document(work) == before


def test_a_run_plans_with_the_options_of_the_plan_command(work: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    options = PlanOptions(reorient=True, spacing=(2.0, 2.0, 2.0))
    made = preparing.plan(NAME, workspace=work, options=options)
    write_more(work)
    session = open_session(NAME, work)
    found, _ = preparing.make_fingerprint(session)
    again, is_new = make_plan(session, found, PlanOptions(), prefer_existing=True)
    assert is_new
    assert again.image_reader_writer == made.image_reader_writer
    assert again.configuration("2d").spacing == (2.0, 2.0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_run_may_ask_for_another_gpu_memory_than_the_plan_command(work: Workspace) -> None:
    preparing.plan(NAME, workspace=work, options=PlanOptions(gpu_memory_gb=100.0, reorient=True))
    session = open_session(NAME, work)
    found, _ = preparing.make_fingerprint(session)
    kept, _ = make_plan(session, found, PlanOptions(), prefer_existing=True)
    assert kept.segwright["gpu_memory_gb"] == 100
    other, is_new = make_plan(session, found, PlanOptions(gpu_memory_gb=20.0), prefer_existing=True)
    assert (other.segwright["gpu_memory_gb"], is_new) == (20, True)
    assert other.image_reader_writer.endswith("WithReorient")


def test_a_run_keeps_the_plans_of_its_trainings_when_the_dataset_changed(
    work: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    _train(work)
    before = _document(work)
    write_more(work)
    session = open_session(NAME, work)
    found, _ = preparing.make_fingerprint(session)
    _, is_new = make_plan(session, found, PlanOptions(), prefer_existing=True)
    assert not is_new
    assert _document(work) == before
    assert "is kept although dataset or options changed since" in caplog.text


def write_more(work: Workspace) -> None:
    """Add a third case, with other intensities, to the dataset."""
    raw = work.raw / NAME
    write_dataset(raw.parent / "more", num_training=3, num_test=0, edge=16, seed=5)
    for folder in ("imagesTr", "labelsTr"):
        for file in sorted((raw.parent / "more" / folder).glob("*_003*")):
            shutil.move(file, raw / folder / file.name)
    document = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    (raw / "dataset.json").write_text(json.dumps({**document, "numTraining": 3}), encoding="utf-8")


def test_options_are_compared_without_the_name(work: Workspace) -> None:
    _preprocess(work)
    write_more(work)
    preparing.plan(NAME, workspace=work, options=replace(PlanOptions(), name="nnUNetPlans"))
    assert _document(work)["segwright"]["options"]["name"] is None
