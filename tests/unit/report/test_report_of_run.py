"""The report at the end of a run: made when scores are new, never the reason for a failure."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from made_model import make_model

from segwright.api.reporting import report_of_run
from segwright.workspace import Workspace

pytestmark = pytest.mark.slow


def test_it_is_written_once_and_again_when_scores_are_newer(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    workspace = Workspace.under(tmp_path)
    file = report_of_run(model.parent, workspace=workspace)
    assert file == model.parent / "report.html"
    made = file.stat().st_mtime_ns
    report_of_run(model.parent, workspace=workspace)
    assert file.stat().st_mtime_ns == made
    summary = model / "fold_0" / "validation" / "summary.json"
    os.utime(summary, ns=(made + 1, made + 1))
    report_of_run(model.parent, workspace=workspace)
    assert file.stat().st_mtime_ns > made


def test_it_is_written_again_when_scores_are_others_whatever_their_time(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    workspace = Workspace.under(tmp_path)
    file = report_of_run(model.parent, workspace=workspace)
    assert file is not None
    summary = model / "fold_0" / "validation" / "summary.json"
    summary.write_text(summary.read_text() + " ")
    os.utime(summary, ns=(1, 1))
    made = file.stat().st_mtime_ns
    report_of_run(model.parent, workspace=workspace)
    assert file.stat().st_mtime_ns > made


def test_a_failure_is_said_and_nothing_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(tmp_path)
    (model / "plans.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert report_of_run(model.parent, workspace=Workspace.under(tmp_path)) is None
    assert "no report was written (PlanError" in caplog.text


def test_folds_of_different_models_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(tmp_path)
    for fold, network in enumerate(("unet", "residual-unet")):
        header = model / f"fold_{fold}" / "checkpoint_final.json"
        header.parent.mkdir(exist_ok=True)
        header.write_text(json.dumps({"configuration": "3d_fullres", "network": {"reference": network}}))
    assert report_of_run(model.parent, workspace=Workspace.under(tmp_path)) is not None
    assert "its folds were trained as different models, the network differs" in caplog.text
