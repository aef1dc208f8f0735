"""Readers that fail on purpose are found out, each with what repeats it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from segwright.core.errors import SegwrightError
from tests.fuzz.isolation import Target, fuzz


def _make(folder: Path) -> list[Path]:
    path = folder / "file"
    path.write_bytes(b"good")
    return [path]


def _count(data: bytes, rng: Random) -> bytes:
    return b"bad" if rng.random() < 0.5 else data


def _abort(path: Path) -> None:
    if path.read_bytes() == b"bad":
        os.abort()


def _hang(path: Path) -> None:
    if path.read_bytes() == b"bad":
        time.sleep(60)


def _grow(path: Path) -> None:
    if path.read_bytes() == b"bad":
        try:
            bytearray(2**31)
        except MemoryError as error:
            raise SegwrightError("hidden") from error


def _raise(path: Path) -> None:
    if path.read_bytes() == b"bad":
        raise KeyError("foreign")


def _refuse(path: Path) -> None:
    if path.read_bytes() == b"bad":
        raise SegwrightError("bad")


FAULTS = {
    name: Target(make=_make, read=read, mutate=_count)
    for name, read in (("signal", _abort), ("hang", _hang), ("memory", _grow), ("foreign", _raise), ("none", _refuse))
}


@pytest.mark.parametrize(("name", "count"), [("signal", 3), ("hang", 2), ("memory", 8), ("foreign", 8)])
def test_a_fault_is_found_and_the_inputs_after_it_are_tried(name: str, count: int) -> None:
    outcome = fuzz(f"tests.fuzz.test_isolation:{name}", count=count, seed=1, time_limit=0.5)
    assert {finding.kind for finding in outcome.findings} == {name}
    assert f"show tests.fuzz.test_isolation:{name} --seed 1 --index" in str(outcome.findings[0])
    died = len(outcome.findings) + outcome.repeats if name in {"signal", "hang"} else 0
    assert outcome.tried == count - died > 0


def test_errors_of_ours_are_no_findings() -> None:
    outcome = fuzz("tests.fuzz.test_isolation:none", count=8, seed=1)
    assert (outcome.tried, outcome.findings) == (8, [])
    assert 0 < outcome.refused < 8
