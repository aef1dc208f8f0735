"""Folds of one trainer file: changed code, plan and network are noticed before the next fold is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from segwright.api.checks.trainer_file import require_same_model
from segwright.core.errors import ModelError
from segwright.core.files.json_documents import write_checked_json
from segwright.training.config import changed
from segwright.workspace import PLANS_JSON, TRAIN_JSON
from tests.unit.compat.trainer_files import MODERN_2026, NETWORK_2023, NETWORK_2024, NOTHING, make_run
from tests.unit.training.tiny_task import settings


def record_fold(run: Any, fold: int) -> Path:
    """Write what a trained fold leaves of its code, plan and settings."""
    folder: Path = run.output_folder.with_name(f"fold_{fold}")
    folder.mkdir(parents=True)
    run.plans.save(folder.parent / PLANS_JSON)
    write_checked_json(folder / TRAIN_JSON, {**run.identity(), "config": run.config.model_dump(mode="json")})
    (folder / "checkpoint_final.safetensors").touch()
    return folder


def next_fold(folder: Path, text: str, **options: Any) -> Any:
    run = make_run(folder, text, **options)
    run.fold = 1
    run.output_folder = run.output_folder.with_name("fold_1")
    return run


def test_fold_with_the_same_file_is_trained(tmp_path: Path) -> None:
    record_fold(make_run(tmp_path, NETWORK_2024), 0)
    require_same_model(next_fold(tmp_path, NETWORK_2024))


def test_changed_code_of_a_network_is_refused(tmp_path: Path) -> None:
    record_fold(make_run(tmp_path, NETWORK_2023), 0)
    with pytest.raises(ModelError, match=r"fold_0: trainer_under_test.py changed .* --name NAME"):
        require_same_model(next_fold(tmp_path, NETWORK_2023.replace("4, 3, padding", "6, 3, padding")))


def test_changed_code_without_a_network_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_fold(make_run(tmp_path, NOTHING), 0)
    with caplog.at_level(logging.WARNING):
        require_same_model(next_fold(tmp_path, f"{NOTHING}    # changed\n"))
    assert "fold_0: trainer_under_test.py changed since it was trained" in caplog.text


def test_changed_code_of_an_interrupted_fold_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_fold(next_fold(tmp_path, MODERN_2026), 1)
    with caplog.at_level(logging.WARNING):
        require_same_model(next_fold(tmp_path, f"{MODERN_2026}\n"))
    assert "it continues with the new code" in caplog.text


def test_other_plan_of_a_file_is_refused(tmp_path: Path) -> None:
    record_fold(make_run(tmp_path, NETWORK_2024), 0)
    with pytest.raises(ModelError, match="with a plan that has changed since"):
        require_same_model(next_fold(tmp_path, NETWORK_2024.replace("[8, 16, 16]", "[16, 16, 16]")))


def test_other_network_settings_are_refused(tmp_path: Path) -> None:
    record_fold(make_run(tmp_path, NOTHING), 0)
    with pytest.raises(ModelError, match="norm = that of the plan, not batch"):
        require_same_model(next_fold(tmp_path, NOTHING, config=changed(settings(), norm="batch")))


def test_variant_as_base_is_compared_with_its_own_network(tmp_path: Path) -> None:
    text = """
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

class nnUNetTrainerMyBN(nnUNetTrainerBN):
    pass
"""
    record_fold(make_run(tmp_path, text), 0)
    require_same_model(next_fold(tmp_path, text))
