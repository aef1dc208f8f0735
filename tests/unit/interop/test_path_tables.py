"""Tables of paths: separators, encodings, columns, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

import segwright
from segwright.core.errors import ProblemReport, SegwrightError
from segwright.interop.datasets.path_tables import find_tables, match_table
from tests.unit.interop.made_folders import a_table, hashes


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        (file.parent / name).touch()
    file.write_text(text, encoding=encoding)
    return file


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_byte_order_marks(tmp_path: Path, separator: str, encoding: str) -> None:
    rows = [["image", "mask"], ["a.png", "b.png"], [str(tmp_path / "c.png"), "d.png"], []]
    file = write(tmp_path / "t.csv", "\n".join(map(separator.join, rows)), encoding)
    matching = match_table(file)
    assert [(case.identifier, case.images[0].name) for case in matching.cases] == [("b", "a.png"), ("d", "c.png")]
    assert matching.channels == ("",)


def test_a_row_without_label_map_is_a_test_case(tmp_path: Path) -> None:
    matching = match_table(write(tmp_path / "t.csv", "id,image,label\n7,a.png,b.png\n8,c.png,\n"))
    assert [case.identifier for case in matching.cases] == ["7"]
    assert [(case.identifier, case.label) for case in matching.test] == [("8", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,scan\na.png,b.png\n", r"has columns of paths for 'image', 'scan' \(images\) and none \(label maps\)"),
        ("image,mask,label\na.png,b.png,c.png\n", r"and 'mask', 'label' \(label maps\); name one column 'label'"),
        ("id,image,label\n1,a.png,b.png\n1,c.png,d.png\n", "line 3: case '1' is there twice; give a column 'case'"),
        ("image,label\na.png,b.png\nc.png,e.png\n", "line 3, label: .*e.png: no such file; correct the path"),
        ("image,image\na.png,b.png\n", "expected different column names in the first line"),
        ("", "is no table with a line of column names"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SegwrightError, match=message):
        match_table(write(tmp_path / "t.csv", text))


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegwrightError, match="is not UTF-8 text; save it as CSV with UTF-8"):
        match_table(write(tmp_path / "t.csv", "image,label\n\u00fc.png,b.png\n", "latin-1"))


def test_tables_of_other_things_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "ages.csv", "patient,age\n1,50\n")
    write(tmp_path / "elsewhere.csv", "image,label\nx/1.png,y/1.png\n")
    write(tmp_path / "._t.csv", "image,label\na.png,b.png\n")
    write(tmp_path / "latin.csv", "\u00fc,label\n", "latin-1")
    assert find_tables(tmp_path) == []
    kept = write(tmp_path / "t.csv", "image,label\na.png,b.png\n")
    assert find_tables(tmp_path) == [kept]


def test_two_tables_are_one_too_many(tmp_path: Path) -> None:
    for name in ("t.csv", "u.csv"):
        write(tmp_path / name, "image,label\na.png,b.png\n")
    with pytest.raises(ProblemReport, match="holds several tables of paths: t.csv, u.csv; keep one of them"):
        segwright.init(tmp_path)


def test_a_table_is_converted_beside_its_files(tmp_path: Path) -> None:
    a_table(tmp_path)
    before = hashes(tmp_path)
    converted = segwright.convert("folders", tmp_path / "files.csv", tmp_path / "Dataset050_T", link=True)
    assert converted is not None
    assert segwright.check(converted.dataset).errors == ()
    assert {name: content for name, content in hashes(tmp_path).items() if name in before} == before
    again = segwright.convert("folders", tmp_path / "files.csv", tmp_path / "Dataset050_T", link=True)
    assert again is not None
    assert (again.num_written, again.num_kept) == (0, 9)
