"""What a fold was trained with, and how the files differ from it later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segwright.core.errors import DatasetError
from segwright.data.preprocessed.provenance import SourceFile
from segwright.data.stage_cache import hash_files
from segwright.data.training_data import TRAINING_DATA_JSON, TrainingData, changes, entries

CASES = ("a", "b", "c")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_Raw"
    folder.mkdir()
    for name in CASES:
        (folder / f"{name}_image").write_text(f"image {name}")
        (folder / f"{name}_label").write_text(f"label {name}")
    return folder


def files(raw: Path) -> dict[str, list[Path]]:
    return {name: [raw / f"{name}_image", raw / f"{name}_label"] for name in CASES}


@pytest.fixture
def data(raw: Path) -> TrainingData:
    cases = {name: entries(raw, paths, hash_files(paths, ())) for name, paths in files(raw).items()}
    return TrainingData(dataset=str(raw), raw_digest="x", train=("a", "b"), val=("c",), cases=cases)


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def test_it_comes_back_and_knows_where_the_files_are(raw: Path, data: TrainingData, tmp_path: Path) -> None:
    data.save(tmp_path)
    found = TrainingData.read(tmp_path)
    assert found == data
    assert found is not None
    assert found.files() == files(raw)
    assert found.cases["a"][0][0] == "a_image"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 9}'])
def test_a_missing_or_damaged_document_says_nothing(tmp_path: Path, text: str) -> None:
    assert TrainingData.read(tmp_path) is None
    (tmp_path / TRAINING_DATA_JSON).write_text(text)
    assert TrainingData.read(tmp_path) is None


def test_changed_labels_and_images_and_missing_files_are_reported_apart(raw: Path, data: TrainingData) -> None:
    rewrite(raw / "a_label", "better")
    rewrite(raw / "b_image", "other")
    (raw / "c_label").unlink()
    found = changes(data, files(raw))
    assert (found.labels, found.images, found.gone) == (("a",), ("b",), ("c",))


def test_another_label_map_changes_the_labels_of_all_cases(raw: Path, data: TrainingData) -> None:
    assert changes(data, files(raw), label_map={255: 1}).labels == CASES
    mapped = data.model_copy(update={"label_map": {255: 1}})
    assert changes(mapped, files(raw), label_map={255: 1}).labels == ()
    assert changes(mapped, files(raw)).labels == ()
    assert TrainingData.model_validate(mapped.model_dump(mode="json", by_alias=True)) == mapped
    assert mapped.scored_label("a")[1] == {255: 1}
    assert mapped.model_copy(update={"scored_label_map": {}}).scored_label("a")[1] == {}


def test_a_case_that_left_the_dataset_is_gone(raw: Path, data: TrainingData) -> None:
    now = files(raw)
    del now["b"]
    assert changes(data, now).gone == ("b",)


def test_the_same_content_written_again_or_moved_is_no_change(raw: Path, data: TrainingData) -> None:
    rewrite(raw / "a_label", "label a")
    moved = raw.rename(raw.with_name("elsewhere"))
    found = changes(data, files(moved))
    assert (found.labels, found.images, found.gone) == ((), (), ())


def test_files_of_known_size_and_time_are_not_read(raw: Path, data: TrainingData) -> None:
    path = raw / "a_label"
    status = path.stat()
    path.write_text("LABEL a")  # as long, and its time is put back
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changes(data, files(raw)).labels == ()
    rewrite(path, "new")
    status = path.stat()
    known = SourceFile(name="a_label", size=3, mtime_ns=status.st_mtime_ns, sha256=data.cases["a"][1][3])
    assert changes(data, files(raw), lambda case: [known]).labels == ()


def test_what_is_no_regular_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="pipe: is not a regular file"):
        hash_files([tmp_path / "pipe"], ())
    with pytest.raises(DatasetError, match="cannot be read"):
        hash_files([tmp_path / "nothing"], ())
