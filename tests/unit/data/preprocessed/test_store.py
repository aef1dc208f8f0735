"""The store of preprocessed cases: layout, lazy reading, and what it takes for a case to count as done."""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from segwright.core.errors import WorkspaceError
from segwright.core.files.hashing import file_crc
from segwright.core.files.json_documents import with_checksum
from segwright.data.preprocessed.chunks import chunk_and_block
from segwright.data.preprocessed.provenance import Provenance, SourceFile
from segwright.data.preprocessed.store import CaseStore, DamagedCaseError, PreprocessedCase

SHAPE = (9, 10, 11)
PROVENANCE = Provenance(
    properties={"reader": "NibabelIO", "affine": [1.0, 2.0]},
    shape_before_cropping=(10, 11, 12),
    box=((0, 9), (1, 11), (0, 11)),
    shape_after_cropping=(9, 10, 11),
    spacing=(3.0, 1.0, 1.0),
    transpose_forward=(2, 0, 1),
    transpose_backward=(1, 2, 0),
)
LOCATIONS: dict[Any, Any] = {
    1: np.array([[0, 1, 2], [3, 4, 5], [8, 9, 10]]),
    (1, 2): np.array([[7, 7, 7]]),
    3: np.zeros((0, 3)),
}
FILES = ["case.b2nd", "case_seg.b2nd", "case_locations.b2nd"]


@pytest.fixture
def image() -> Any:
    return np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path, image: Any) -> CaseStore:
    store = CaseStore(tmp_path / "data")
    label = (image[:1] > 0).astype(np.int16) - 1
    store.save("case", image, label, LOCATIONS, PROVENANCE, patch_size=(8, 8, 8), source_hash="abc")
    return store


def test_arrays_come_back(store: CaseStore, image: Any) -> None:
    case = store.load("case")
    assert (case.image.shape, case.image.dtype, case.label.dtype) == ((2, *SHAPE), np.float32, np.int16)
    assert np.array_equal(case.image[...], image)
    assert np.array_equal(np.asarray(case.label), (image[:1] > 0).astype(np.int16) - 1)


def test_slices_are_read_alone(store: CaseStore, image: Any) -> None:
    case = store.load("case")
    assert np.array_equal(case.image[1:, 2:5, 3, 4:9], image[1:, 2:5, 3, 4:9])


def test_slices_may_be_read_in_threads(store: CaseStore, image: Any) -> None:
    case = store.load("case")
    with ThreadPoolExecutor(8) as pool:
        planes = list(pool.map(lambda plane: case.image[:, plane % 9], range(200)))
    assert all(np.array_equal(plane, image[:, index % 9]) for index, plane in enumerate(planes))


def test_class_locations_come_back(store: CaseStore) -> None:
    locations = store.load("case").class_locations
    assert {key: len(voxels) for key, voxels in locations.items()} == {1: 3, (1, 2): 1, 3: 0}
    for key, voxels in LOCATIONS.items():
        assert np.array_equal(np.asarray(locations[key]), voxels)
    assert locations[1][-1].tolist() == [8, 9, 10]


def test_a_location_beyond_the_class_is_an_index_error(store: CaseStore) -> None:
    with pytest.raises(IndexError):
        store.load("case").class_locations[(1, 2)][1]


def test_a_case_without_locations_is_stored(store: CaseStore, image: Any) -> None:
    none = {1: np.zeros((0, 3), dtype=np.int32)}
    store.save("bare", image, image[:1] > 0, none, PROVENANCE, patch_size=(8, 8), source_hash="")
    assert np.asarray(store.load("bare").class_locations[1]).shape == (0, 3)


def test_provenance_comes_back(store: CaseStore) -> None:
    assert store.load("case").provenance == PROVENANCE
    assert Provenance.from_json(json.loads(json.dumps(PROVENANCE.to_json()))) == PROVENANCE


def test_files_are_plain_blosc2(store: CaseStore, image: Any) -> None:
    array = blosc2.open(str(store.folder / "case.b2nd"), mode="r")
    assert np.array_equal(array[:], image)
    assert (array.chunks, array.blocks) == chunk_and_block(image.shape, (8, 8, 8), 4)


def test_identifiers_are_sorted_and_whole_cases_only(store: CaseStore, image: Any) -> None:
    store.save("a.1", image, image[:1] > 0, {}, PROVENANCE, patch_size=(8, 8, 8), source_hash="")
    (store.folder / ".12345678.tmp.b.json").write_text("{}")
    (store.folder / "torn.b2nd").write_bytes(b"")
    assert store.identifiers() == ("a.1", "case")


def test_a_case_is_fresh_for_its_own_sources(store: CaseStore) -> None:
    assert store.is_fresh("case", "abc")
    assert not store.is_fresh("case", "abd")
    assert not store.is_fresh("other", "abc")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_array_is_noticed(store: CaseStore, name: str) -> None:
    (store.folder / name).unlink()
    assert not store.is_fresh("case", "abc")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_array_is_noticed(store: CaseStore, name: str) -> None:
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    assert not store.is_fresh("case", "abc")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_array_is_noticed(store: CaseStore, name: str) -> None:
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert not store.is_fresh("case", "abc")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "source_hash": "abc"}'])
def test_a_damaged_document_is_noticed(store: CaseStore, text: str) -> None:
    (store.folder / "case.json").write_text(text)
    assert not store.is_fresh("case", "abc")
    assert store.recorded_sources("case") == ()


def test_an_interrupted_write_leaves_no_case(store: CaseStore, image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segwright.data.preprocessed.store.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save("case", image, image[:1] > 0, {}, PROVENANCE, patch_size=(8, 8, 8), source_hash="new")
    assert store.identifiers() == ()


def test_sweep_removes_what_was_abandoned(store: CaseStore) -> None:
    old, young = (store.folder / f".{name}.tmp.case.b2nd" for name in ("11111111", "22222222"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    store.sweep()
    assert (old.exists(), young.exists(), store.is_fresh("case", "abc")) == (False, True, True)


def test_sources_come_back(store: CaseStore, image: Any) -> None:
    sources = (SourceFile(name="case_0000.nii.gz", size=12, mtime_ns=34, sha256="ef"),)
    store.save("case", image, image[:1] > 0, {}, PROVENANCE, patch_size=(8, 8, 8), source_hash="", sources=sources)
    assert store.recorded_sources("case") == sources


def test_a_removed_case_leaves_nothing(store: CaseStore) -> None:
    store.remove("case")
    assert list(store.folder.iterdir()) == []


def test_an_unknown_case_names_the_nearest(store: CaseStore) -> None:
    with pytest.raises(WorkspaceError, match="'csae' is not preprocessed; did you mean 'case'"):
        store.load("csae")


def test_a_foreign_document_is_refused(store: CaseStore) -> None:
    (store.folder / "case.json").write_text('{"schema_version": 1}')
    with pytest.raises(WorkspaceError, match="not a preprocessed case"):
        store.load("case")


def test_reading_a_damaged_array_names_the_file(store: CaseStore) -> None:
    case = store.load("case")
    (store.folder / "case.b2nd").write_bytes(b"no frame at all")
    with pytest.raises(WorkspaceError, match=r"case\.b2nd: missing or damaged"):
        case.image[...]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def everything(case: PreprocessedCase) -> list[Any]:
    arrays = [case.image[...], case.label[...], *map(np.asarray, case.class_locations.values())]
    return [*(array.tolist() for array in arrays), case.provenance, list(case.class_locations)]


@pytest.mark.parametrize("name", [*FILES, "case.json"])
def test_no_flipped_bit_is_read_as_data(store: CaseStore, name: str) -> None:
    path = store.folder / name
    whole, document = path.read_bytes(), (store.folder / "case.json").read_bytes()
    right = everything(store.load("case"))
    for bit in np.random.default_rng(0).integers(0, len(whole) * 8, 30).tolist():
        flip(path, bit)
        with suppress(WorkspaceError):
            assert everything(store.load("case")) == right
            assert name == "case.json"  # a space that became another one
        path.write_bytes(whole)
        (store.folder / "case.json").write_bytes(document)


def test_a_damaged_case_counts_as_missing_and_is_made_again(store: CaseStore) -> None:
    case = store.load("case")
    flip(store.folder / "case.b2nd", 1000)
    with pytest.raises(
        DamagedCaseError, match=r"case\.b2nd: missing or damaged \(its checksum.*preprocess the dataset"
    ):
        case.image[0, 0]
    assert store.identifiers() == ()
    assert not store.is_fresh("case", "abc")


def test_an_array_is_compared_with_its_checksum_once(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("segwright.data.preprocessed.store.file_crc", lambda path: seen.append(path) or file_crc(path))
    case = store.load("case")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda plane: case.image[:, plane % 9], range(50)))
    assert seen == [store.folder / "case.b2nd"]


def test_cases_of_older_versions_are_read(store: CaseStore, image: Any) -> None:
    path = store.folder / "case.json"
    document = json.loads(path.read_text())
    del document["checksum"]
    for kind, entry in document["arrays"].items():
        del entry["crc32"]
        entry["checksum"] = zlib.crc32((store.folder / FILES[["image", "label", "locations"].index(kind)]).read_bytes())
    path.write_text(json.dumps(document))
    assert store.is_fresh("case", "abc")
    assert np.array_equal(store.load("case").image[...], image)


def test_an_array_with_attributes_is_not_opened(store: CaseStore) -> None:
    path = store.folder / "case.b2nd"
    array = blosc2.open(str(path), mode="a")
    array.schunk.vlmeta["code"] = "print"
    document = json.loads((store.folder / "case.json").read_text())
    document["arrays"]["image"] |= {"bytes": path.stat().st_size, "crc32": file_crc(path)}
    (store.folder / "case.json").write_text(json.dumps(with_checksum(document)))
    with pytest.raises(WorkspaceError, match="has attributes, which may hold code or references"):
        store.load("case").image[...]


def test_cases_whose_files_would_clash_are_reported() -> None:
    assert list(CaseStore.name_clashes(["a", "a_seg", "b", "b_locations", "c"])) == [
        ("a", "a_seg"),
        ("b", "b_locations"),
    ]


def test_large_coordinates_are_kept(store: CaseStore) -> None:
    wide = np.zeros((1, 1, 1, 40000), dtype=np.float32)
    locations = {1: np.array([[0, 0, 39999]])}
    provenance = replace(PROVENANCE, shape_after_cropping=(1, 1, 40000))
    store.save("wide", wide, wide, locations, provenance, patch_size=(1, 64), source_hash="")
    assert store.load("wide").class_locations[1][0].tolist() == [0, 0, 39999]


@pytest.mark.parametrize(
    ("shape", "patch", "itemsize", "block", "chunk"),
    [
        # nnU-Net behaviour 6.6
        ((1, 36, 50, 35), (40, 56, 40), 4, (1, 32, 32, 32), (1, 36, 50, 35)),
        ((1, 36, 50, 35), (40, 56, 40), 2, (1, 36, 50, 35), (1, 36, 50, 35)),
        ((4, 140, 171, 137), (128, 128, 128), 4, (1, 32, 32, 32), (1, 128, 128, 96)),
        ((4, 140, 171, 137), (128, 128, 128), 2, (1, 32, 64, 32), (1, 140, 171, 128)),
        ((1, 482, 512, 512), (128, 128, 128), 4, (1, 32, 32, 32), (1, 96, 128, 128)),
        ((1, 482, 512, 512), (128, 128, 128), 2, (1, 64, 32, 32), (1, 128, 192, 128)),
        ((1, 18, 237, 208), (20, 256, 224), 4, (1, 8, 64, 64), (1, 18, 237, 208)),
        ((1, 18, 237, 208), (20, 256, 224), 2, (1, 8, 128, 64), (1, 18, 237, 208)),
        ((1, 18, 237, 208), (256, 224), 4, (1, 1, 237, 128), (1, 1, 237, 208)),
        ((3, 1, 1500, 1500), (1280, 1024), 4, (1, 1, 256, 128), (1, 1, 1280, 1152)),
        ((1, 482, 512, 512), (512, 512), 4, (1, 1, 256, 128), (1, 1, 512, 512)),
        ((1, 193, 205, 205), (128, 128, 128), 1, (1, 64, 64, 32), (1, 192, 192, 160)),
    ],
)
def test_chunk_rule(shape: Any, patch: Any, itemsize: int, block: Any, chunk: Any) -> None:
    assert chunk_and_block(shape, patch, itemsize) == (chunk, block)
