"""Documents with a checksum, and what killed processes leave."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from segwright.core.errors import SegwrightError
from segwright.core.files.atomic_io import ABANDONED_S, sweep_leftovers
from segwright.core.files.json_documents import parse_document, read_checked_json, write_checked_json


class Document(BaseModel):
    value: float


def test_a_document_comes_back_without_its_checksum(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, float("inf"), None], "by number": {2: "x", 10: "y"}, "ä": "\udc80"}
    write_checked_json(tmp_path / "d.json", content)
    assert "checksum" in json.loads((tmp_path / "d.json").read_text())
    assert read_checked_json(tmp_path / "d.json") == {**content, "by number": {"2": "x", "10": "y"}}


@pytest.mark.parametrize("parse", [False, True])
def test_another_digit_is_damage_and_the_way_out_is_named(tmp_path: Path, parse: bool) -> None:
    file = tmp_path / "d.json"
    write_checked_json(file, {"value": 1.25})
    edited = file.read_text().replace("1.25", "1.75")
    file.write_text(edited)
    with pytest.raises(SegwrightError, match=r"d.json: damaged .*edited on purpose, remove its line 'checksum'"):
        parse_document(Document, file) if parse else read_checked_json(file)
    file.write_text(json.dumps({"value": json.loads(edited)["value"]}))
    assert parse_document(Document, file).value == 1.75


def test_a_document_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"value": 2}')
    assert read_checked_json(tmp_path / "d.json") == {"value": 2}
    (tmp_path / "d.json").write_text("[1]")
    assert read_checked_json(tmp_path / "d.json") == [1]


def test_young_leftovers_of_a_shared_folder_stay(tmp_path: Path) -> None:
    young, old, folder = (tmp_path / f".0123456{digit}.tmp.a.json" for digit in "789")
    young.touch()
    old.touch()
    folder.mkdir()
    for path in (old, folder):
        os.utime(path, (0, old.stat().st_mtime - ABANDONED_S - 1))
    sweep_leftovers(tmp_path, is_shared=True)
    assert [*tmp_path.iterdir()] == [young]
    sweep_leftovers(tmp_path)
    assert not [*tmp_path.iterdir()]
