from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from segwright.core.errors import ConfigError, DatasetError, ModelError, WorkspaceError
from segwright.workspace import Workspace, name_of_model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("Dataset004_Hippocampus", "Dataset040_Liver"):
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        (folder / "dataset.json").touch()
    return Workspace.under(tmp_path)


@pytest.mark.parametrize("dataset", ["4", "004", "Hippocampus", "Dataset004_Hippocampus"])
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


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A raw dataset outside the work folder, which recorded it."""
    folder = tmp_path / "archive" / "Dataset009_Spleen"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    Workspace.under(tmp_path).record_dataset(folder)
    return folder


@pytest.mark.parametrize("dataset", ["9", "009", "Spleen", "Dataset009_Spleen"])
def test_a_dataset_that_was_used_by_path_is_found(workspace: Workspace, elsewhere: Path, dataset: str) -> None:
    assert workspace.resolve_dataset(dataset) == elsewhere


def test_a_recorded_dataset_keeps_its_name_behind_a_link(tmp_path: Path, elsewhere: Path) -> None:
    link = tmp_path / "Dataset010_Link"
    link.symlink_to(elsewhere)
    workspace = Workspace.under(tmp_path)
    workspace.record_dataset(link)
    assert workspace.resolve_dataset("10") == link


def test_a_changed_dataset_is_named_and_not_taken(workspace: Workspace, elsewhere: Path) -> None:
    (elsewhere / "dataset.json").write_text("[]")
    with pytest.raises(DatasetError, match=f"has changed since .*; to use it as it is now, give the path {elsewhere}"):
        workspace.resolve_dataset("Spleen")
    workspace.record_dataset(elsewhere)
    assert workspace.resolve_dataset("Spleen") == elsewhere


def test_a_moved_dataset_is_named(workspace: Workspace, elsewhere: Path) -> None:
    elsewhere.rename(elsewhere.with_name("Dataset009_Moved"))
    with pytest.raises(DatasetError, match=r"Dataset009_Spleen/dataset\.json: no such file; it was there when .* made"):
        workspace.resolve_dataset("9")
    assert workspace.dataset_name("9") == "Dataset009_Spleen"


def test_a_dataset_whose_place_is_not_recorded_is_named(workspace: Workspace) -> None:
    (workspace.results / "Dataset011_Old").mkdir(parents=True)
    with pytest.raises(DatasetError, match="'Dataset011_Old' is not below .*; give the path of its folder"):
        workspace.resolve_dataset("11")


def test_a_damaged_record_counts_as_none(workspace: Workspace, elsewhere: Path) -> None:
    (workspace.preprocessed / elsewhere.name / "raw_folder.json").write_text("{ half")
    with pytest.raises(DatasetError, match="does not say where else it is"):
        workspace.resolve_dataset("9")


def test_a_number_of_two_datasets_is_ambiguous(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset004_Heart").mkdir()
    with pytest.raises(DatasetError, match="'4' is ambiguous: Dataset004_Heart, Dataset004_Hippocampus"):
        workspace.resolve_dataset("4")


def test_results_are_found_by_path_and_by_name(workspace: Workspace) -> None:
    results = workspace.results / "Dataset004_Hippocampus"
    results.mkdir(parents=True)
    assert {workspace.find_results(each) for each in (results, "4", "Hippocampus")} == {results}
    with pytest.raises(ModelError, match="'5' is neither .*contains Dataset004_Hippocampus"):
        workspace.find_results("5")


def test_an_unwritable_work_folder_is_named_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder should be")
    with pytest.raises(WorkspaceError, match="--work DIR"):
        Workspace.under(tmp_path / "work").require_writable()


@pytest.mark.parametrize("name", [3, Path("model"), ["model"]])
def test_a_name_of_a_model_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="expected text, not"):
        name_of_model(name, "Trainer", None)


def test_several_threads_may_check_that_a_workspace_is_writable(tmp_path: Path) -> None:
    place = Workspace.under(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: place.require_writable(), range(200)))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["preprocessed", "results"]
