"""Zip files that would fill a disk, or that no folder can hold."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import pytest

from segwright.core.errors import ModelError
from segwright.interop.archive import SMALL_BYTES, extract


def packed(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name given twice
        for name, data in entries:
            archive.writestr(name, data)
    return path


def test_many_small_entries_may_not_grow_without_end(tmp_path: Path) -> None:
    zeros = bytes(SMALL_BYTES // 4)
    file = packed(tmp_path / "a.zip", [(f"m/{index}", zeros) for index in range(5)], zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="its 5 entries grow from"):
        extract(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("m/a", b"1"), ("m/a", b"2")], "two entries 'm/a'"),
        ([("m/a", b"1"), ("m//a", b"2")], "two entries"),
        ([("m/a", b"1"), ("m/a/b", b"2")], "'m/a/b' lies below another file"),
        ([("m/" + "a" * 300, b"1")], "is too long"),
        ([("m/" + "/".join(["a" * 200] * 30), b"1")], "cannot be unpacked"),
    ],
)
def test_entries_that_no_folder_holds_are_refused(
    tmp_path: Path, entries: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        extract(packed(tmp_path / "a.zip", entries), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_text_that_packs_well_beside_weights_is_unpacked(tmp_path: Path) -> None:
    extract(packed(tmp_path / "a.zip", [("m/plans.json", b"{}" * 5000)], zipfile.ZIP_DEFLATED), tmp_path / "out")
    assert (tmp_path / "out" / "m" / "plans.json").stat().st_size == 10_000
