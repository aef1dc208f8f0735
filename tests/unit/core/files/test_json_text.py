from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segwright.core.errors import SegwrightError
from segwright.core.files.json_documents import read_json, read_json_lines
from segwright.core.files.json_text import MAX_LEVELS, parse_json


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}\r\n', where="x") == {"a": 1}


def test_numbers_and_texts_come_back_as_they_were() -> None:
    document = {"a": [1, -1, 2**64 - 1, -(2**63), 0.1, 1e300, True, None, "\u00e9\U0001f600", "a\\b", "\udcff"], "": {}}
    assert parse_json(json.dumps(document).encode(), where="x") == document
    assert str(parse_json(b"[NaN, Infinity, -Infinity]", where="x")) == "[nan, inf, -inf]"


def test_documents_of_the_deepest_level_are_read() -> None:
    text = b"[" * MAX_LEVELS + b"]" * MAX_LEVELS
    assert parse_json(text, where="x") is not None
    with pytest.raises(SegwrightError, match="nested more than 100 deep"):
        parse_json(b"[" + text + b"]", where="x")


TEXT = '{\n "labels": {"Nebenh\u00f6hle": 1, "core": 2}\n}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16"), r"x: is UTF-16 text, expected UTF-8; save it as UTF-8 \(in the editor"),
        (TEXT.encode("utf-16-le"), "x: is UTF-16 text or binary, expected UTF-8; save"),
        (TEXT.encode("utf-32"), "x: is UTF-32 text, expected UTF-8; save"),
        (TEXT.encode("cp1252"), "not UTF-8 text: byte 0xf6 at line 2, column 20, perhaps '\u00f6' in cp1252 .*; save"),
        (TEXT.replace("2}", "2,}").encode(), "at line 2, column 39: a comma before a closing bracket; remove"),
        (b"[1, 2, ]", "at line 1, column 6: a comma before a closing bracket"),
        (TEXT.replace('"', "'").encode(), "at line 2, column 2: the quote ' where a double quote is expected; put"),
        ("{\u201ca\u201d: 1}".encode(), "at line 1, column 2: the quote \u201c where a double quote is expected"),
        (b"// mine\n{}", "at line 1, column 1: a comment, which JSON does not have; remove it"),
        (b'{"a": 1, # mine\n "b": 2}', "at line 1, column 10: a comment"),
        (b'{"a": True}', "at line 1, column 7: True, which is not a word of JSON; write true"),
        (b'{"a": 1 "b": 2}', "at line 1, column 9: something other than a comma or a closing bracket"),
        (b'{"a" 1}', "at line 1, column 6: something other than the colon"),
        (b'{"a": "C:\\data"}', "at line 1, column 10: a backslash that begins no character; write two"),
        (b'{"a": "b\n"}', "at line 1, column 9: a line break or control character inside a text"),
        (b'{"a": "b', "at line 1, column 7: a text without its closing double quote"),
        (b'{"a": [1, 2', "at line 1, column 12: the text ends before the document does; the file is cut off"),
        (b"{} {}", "at line 1, column 4: more text after the end of the document"),
        (b"", "x: is empty, expected a JSON document"),
        (b"\xef\xbb\xbf \n", "x: is empty, expected a JSON document"),
        (b"<html>", "x: is not a JSON document but HTML or XML"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "pointer of Git LFS; fetch the file itself with 'git lfs pull'",
        ),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "x: the key 'b' appears twice in one object; remove or rename"),
        (b"[" * 5000 + b"]" * 5000, "x: lists and objects are nested more than 100 deep"),
        (b"[" * 500 + b"]" * 500, "x: lists and objects are nested more than 100 deep"),
        (b'{"a":' * 400 + b"1" + b"}" * 400, "x: lists and objects are nested more than 100 deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"x: the number 99999999999999999999... has 5000 digits, at most 20"),
        (b'{"a": -' + b"9" * 21 + b"}", r"has 21 digits, at most 20"),
        (b'["\\ud800"]', r"x: the text '\\ud800' has half of a character"),
        (b'{"\\udfff": 1}', r"x: the text '\\udfff' has half of a character"),
        (b"[" + b"{}," * 5_000_000 + b"0]", "x: 14 MiB of JSON that take about 1.3 GiB of memory"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_the_remedy(data: bytes, message: str) -> None:
    with pytest.raises(SegwrightError, match=message):
        parse_json(data, where="x")


def test_the_key_that_is_there_twice_is_found_among_many() -> None:
    keys = ", ".join(f'"{index}": 0' for index in (*range(200_000), 199_999))
    with pytest.raises(SegwrightError, match="the key '199999' appears twice"):
        parse_json(f"{{{keys}}}".encode(), where="x")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SegwrightError, match="pipe: is a pipe or a device, expected a file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(SegwrightError, match="is a folder, expected a file"):
        read_json(tmp_path)
    with pytest.raises(SegwrightError, match="none: no such file"):
        read_json(tmp_path / "none")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(SegwrightError, match="huge: is 2048 MiB, above the limit of 512 MiB"):
        read_json(tmp_path / "huge")


def test_a_damaged_line_costs_that_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 0}\n{"epo\xff\n' + b"[" * 5000 + b'\n{"epoch": 3}\r\n{"epoch": 4}')
    found = [document for _, document in read_json_lines(path)]
    assert found == [{"epoch": 0}, None, None, {"epoch": 3}, {"epoch": 4}]
