"""What the functions of the package do before and around the stages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import segwright
from segwright.api.checks.one_model import has_checkpoint
from segwright.api.checks.training_options import TrainOptions, require_options
from segwright.api.session import writing_problem
from segwright.api.training import keyword_values, parse_duration, training_settings
from segwright.api.training_runs import is_trained
from segwright.core.errors import ConfigError
from segwright.data.stage_cache import StageCache, folder_digest, listing_digest
from segwright.workspace import Workspace


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        segwright.trian  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert segwright.__version__.count(".") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2 min", 120), ("45", 45), (30, 30), (None, None)],
)
def test_durations_are_read_kindly(text: str | float | None, expected: float | None) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "0s", "-5m", "5d", "10m5h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write for instance 90s, 10m or 1h30m"):
        parse_duration(text)


def test_network_arguments_are_json_where_they_can_be() -> None:
    assert keyword_values(["width=48", "norm=batch", "sizes=[1, 2]", "on=true"]) == {
        "width": 48,
        "norm": "batch",
        "sizes": [1, 2],
        "on": True,
    }


@pytest.mark.parametrize("pair", ["width", "=3", "a b=3"])
def test_a_network_argument_without_a_name_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match="is not KEY=VALUE; write for instance width=48"):
        keyword_values([pair])


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000 + "]" * 5000])
def test_a_network_argument_beyond_all_bounds_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"width: a number with too many digits, or lists nested too deep"):
        keyword_values([f"width={text}"])


def test_settings_hold_only_what_was_asked_for() -> None:
    assert training_settings(None) == {}
    assert training_settings("1m", {"seed": 3}, network="unet", network_kwargs={"width": 8}) == {
        "seed": 3,
        "budget_s": 60,
        "network": "unet",
        "network_kwargs": {"width": 8},
    }


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"num_epoch": 3}, "auto", "did you mean 'num_epochs'"),
        ({}, "cpuu", "unknown device 'cpuu'"),
        (
            {"network": "residual"},
            "auto",
            r"unknown network 'residual'; did you mean 'residual-unet'\? Choose from res",
        ),
        (
            {"network": "x"},
            "auto",
            "unknown network 'x'; choose from unet, residual-unet, .*, or write your own as pack",
        ),
    ],
)
def test_wrong_settings_are_refused_before_work(settings: dict[str, Any], device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_options(TrainOptions(settings=settings, device=device))


def test_writing_is_judged_without_making_folders(tmp_path: Path) -> None:
    assert writing_problem(Workspace.under(tmp_path / "new" / "place")) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    problem = writing_problem(Workspace.under(tmp_path / "file"))
    assert problem is not None
    assert "choose another one with --work DIR" in str(problem)


def test_a_training_has_ended_only_with_both_files_of_its_checkpoint(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoint_final.safetensors").touch()
    assert has_checkpoint(tmp_path)
    assert not is_trained(tmp_path)
    (tmp_path / "checkpoint_final.json").touch()
    assert is_trained(tmp_path)


def test_the_stage_cache_knows_what_each_stage_was_made_from(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    assert not cache.has_stage("plan")
    cache.record("plan", {"a": 1})
    cache.record("check", "x")
    assert StageCache(tmp_path).is_current("plan", {"a": 1})
    assert not cache.is_current("plan", {"a": 2})
    (tmp_path / "segwright_state.json").write_text("{ half", encoding="utf-8")
    assert not cache.has_stage("plan")


def test_a_listing_changes_with_size_time_and_absence(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1", encoding="utf-8")
    first = listing_digest([file])
    assert first == listing_digest([file])
    os.utime(file, ns=(1, 1))
    touched = listing_digest([file])
    file.unlink()
    assert len({first, touched, listing_digest([file])}) == 3


def test_hidden_files_do_not_change_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    before = folder_digest(tmp_path)
    (tmp_path / ".left.tmp").touch()
    assert folder_digest(tmp_path) == before
    assert folder_digest(tmp_path / "none") == "none"
