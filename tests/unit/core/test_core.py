from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from segwright.core import boxes, parallel, seeds
from segwright.core.errors import (
    ConfigError,
    DatasetError,
    DiskError,
    ModelError,
    Problem,
    ProblemReport,
    SegwrightError,
    WorkspaceError,
    did_you_mean,
    located,
)
from segwright.core.extensions import registry
from segwright.core.files import atomic_io, hashing, json_documents


class Point(BaseModel):
    x: int


def test_nearest_suggests_a_close_name_and_lists_the_rest_otherwise() -> None:
    assert did_you_mean("3d_fulres", ["2d", "3d_fullres"]) == "; did you mean '3d_fullres'?"
    assert did_you_mean("zzz", ["2d", "3d_fullres"]) == "; choose from 2d, 3d_fullres"


def test_a_report_has_one_line_per_problem() -> None:
    report = ProblemReport([Problem(where="a", what="is bad"), Problem(where="b", what="is worse", remedy="mend it")])
    assert str(report).splitlines() == ["a: is bad", "b: is worse; mend it"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    json_documents.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_io.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["plans.json"]


def test_temporary_names_keep_the_suffix_that_writers_look_at(tmp_path: Path) -> None:
    with atomic_io.atomic_path(tmp_path / "case.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.touch()


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkspaceError, match=r"file/a/b.json: cannot be written: .*/file is not a folder; choose"):
        json_documents.write_json(tmp_path / "file" / "a" / "b.json", {})
    with pytest.raises(WorkspaceError, match=r"folder: is a folder already; name another file"):
        json_documents.write_json(tmp_path / "folder", {})
    with pytest.raises(WorkspaceError, match=r"/proc/none/b.json: cannot be written \(No such file"):
        json_documents.write_json(Path("/proc/none/b.json"), {})
    with pytest.raises(WorkspaceError, match=r"cannot be written \(File name too long\)"):
        json_documents.write_json(tmp_path / ("a" * 250), {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk_is_not_reported_as_a_wrong_place(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="no space left"), atomic_io.atomic_path(tmp_path / "a") as temporary:
        raise OSError(28, "No space left on device", str(temporary))


def test_a_folder_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    atomic_io.require_writable_folder(tmp_path / "new" / "er")
    with pytest.raises(WorkspaceError, match=r"file/out: cannot be written to: .*/file is a file; choose another"):
        atomic_io.require_writable_folder(tmp_path / "file" / "out")
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_left_of_a_name_is_swept_and_nothing_else(tmp_path: Path) -> None:
    others = [".01234567.tmp.other.json", ".mine.tmp.a.json", "a.json"]
    for name in (".01234567.tmp.a.json", *others):
        (tmp_path / name).touch()
    (tmp_path / ".89abcdef.tmp.scratch").mkdir()
    atomic_io.sweep_leftovers(tmp_path, {"a.json", "scratch"})
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    atomic_io.sweep_leftovers(tmp_path / "none", {"a.json"})


def test_a_broken_document_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text('{"a": 1,\n oops}')
    with pytest.raises(SegwrightError, match=r"dataset\.json: not valid JSON at line 2"):
        json_documents.read_json(path)


def test_a_wrong_document_names_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_text('{"x": "one"}')
    with pytest.raises(SegwrightError, match=r"point\.json: x: "):
        json_documents.parse_document(Point, path)


def test_content_hash_ignores_key_order() -> None:
    assert hashing.content_hash({"a": 1, "b": [2]}) == hashing.content_hash({"b": [2], "a": 1})


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3))
def test_uncrop_undoes_crop(axes: list[tuple[int, int, int]]) -> None:
    box = tuple((low, low + size) for size, low, _ in axes)
    shape = tuple(low + size + high for size, low, high in axes)
    inside = np.arange(1, 1 + np.prod(boxes.box_shape(box))).reshape(1, *boxes.box_shape(box))
    outside = boxes.uncrop(inside, box, shape)
    assert outside.sum() == inside.sum()
    assert np.array_equal(boxes.crop(outside, box), inside)
    assert boxes.nonzero_box(outside[0] != 0) == box


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3))
def test_padding_keeps_the_content_in_the_box_it_names(axes: list[tuple[int, int]]) -> None:
    array = np.ones([size for size, _ in axes])
    padded, box = boxes.pad_to(array, [wanted for _, wanted in axes])
    assert padded.shape == tuple(max(axis) for axis in axes)
    assert np.array_equal(boxes.crop(padded, box), array)


def test_counted_draws_do_not_depend_on_order() -> None:
    first = seeds.generator(7, "sample", 1, 2).random(3)
    seeds.generator(7, "sample", 1, 1).random(3)
    assert np.array_equal(seeds.generator(7, "sample", 1, 2).random(3), first)
    assert not np.array_equal(seeds.generator(7, "other", 1, 2).random(3), first)


def test_threads_keep_the_order_of_the_items() -> None:
    assert parallel.map_threads(lambda item: item * 2, range(20), workers=4) == [item * 2 for item in range(20)]


def test_a_failing_thread_names_its_item() -> None:
    def fail(item: str) -> None:
        raise KeyError(item)

    with pytest.raises(RuntimeError, match=r"case a: KeyError"):
        parallel.map_threads(fail, ["a"], describe=lambda item: f"case {item}")


def test_user_errors_pass_through_threads_unchanged() -> None:
    def fail(item: str) -> None:
        raise DatasetError(f"{item} is broken")

    with pytest.raises(DatasetError, match=r"^a is broken$"):
        parallel.map_threads(fail, ["a"])


def test_references_are_found_again_and_lambdas_refused() -> None:
    assert registry.import_reference(registry.reference_of(np.testing.assert_allclose), kind="loss") is not None
    with pytest.raises(ConfigError, match="move it to the top level"):
        registry.reference_of(lambda: None)


@pytest.mark.parametrize(
    ("reference", "message"),
    [("loss", "package.module:name"), ("no_such_package:f", "no module named"), ("math:sine", "did you mean 'sin")],
)
def test_a_wrong_reference_says_what_to_do(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.import_reference(reference, kind="loss")


def test_a_place_is_put_before_every_problem() -> None:
    report = ProblemReport([Problem(where="a.nii", what="is empty"), Problem(where="b.nii", what="is a link")])
    found = located(report, "case 7")
    assert isinstance(found, ProblemReport)
    assert str(found) == "case 7: a.nii: is empty\ncase 7: b.nii: is a link"


def test_an_error_stays_of_its_kind_when_it_gets_a_place() -> None:
    assert type(located(ModelError("does not fit"), "case 7")) is ModelError
