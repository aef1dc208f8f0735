from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import ConfigError, DatasetError, WorkspaceError
from segwright.workspace import Workspace, name_of_model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("Dataset004_Hippocampus", "Dataset040_Liver"):
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        (folder / "dataset.json").touch()
    return Workspace.under(tmp_path)


@pytest.mark.parametrize("dataset", ["4", "004", "Dataset004_Hippocampus"])
def test_a_dataset_is_found_by_id_and_by_name(workspace: Workspace, dataset: str) -> None:
    assert workspace.resolve_dataset(dataset).name == "Dataset004_Hippocampus"


def test_a_dataset_is_found_by_path(workspace: Workspace) -> None:
    folder = workspace.raw / "Dataset040_Liver"
    assert workspace.resolve_dataset(folder) == folder


def test_an_unknown_dataset_names_the_nearest(workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match="did you mean 'Dataset004_Hippocampus'"):
        workspace.resolve_dataset("Dataset004_Hipocampus")


def test_a_folder_without_description_is_refused(workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        workspace.resolve_dataset(workspace.raw)


def test_an_unwritable_work_folder_is_named_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder should be")
    with pytest.raises(WorkspaceError, match="--work DIR"):
        Workspace.under(tmp_path / "work").require_writable()


@pytest.mark.parametrize("name", [3, Path("model"), ["model"]])
def test_a_name_of_a_model_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="expected text, not"):
        name_of_model(name, "Trainer", None)
