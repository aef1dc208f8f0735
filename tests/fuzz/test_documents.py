"""Damaged JSON documents are read or refused, never more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segwright.core.documents import read_json
from tests.fuzz.isolation import Target, fuzz
from tests.fuzz.mutation import mutate_json


def _make_json(folder: Path) -> list[Path]:
    path = folder / "document.json"
    path.write_text(json.dumps({"a": [1, 2.5, "text", None, True], "b": {"c": [[1, 2], [3, 4]]}}))
    return [path]


TARGETS = {"json": Target(make=_make_json, read=read_json, mutate=mutate_json)}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_documents_are_read_or_refused(name: str, fuzz_count: int, fuzz_seed: int) -> None:
    outcome = fuzz(f"tests.fuzz.test_documents:{name}", count=fuzz_count, seed=fuzz_seed)
    assert not outcome.findings, "\n".join(map(str, outcome.findings))
    assert outcome.tried == fuzz_count
