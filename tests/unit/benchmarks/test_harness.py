from __future__ import annotations

import sys

import pytest

from benchmarks import harness


def python(program: str) -> harness.Command:
    return harness.Command(arguments=[sys.executable, "-c", program])


def test_the_seconds_that_a_command_prints_are_its_measure() -> None:
    sample = harness.measure(python("print('noise'); print('{\"seconds\": 12.5, \"error\": 0.1}')"))
    assert sample.seconds == 12.5
    assert sample.extra == {"error": 0.1}


def test_a_failing_command_shows_what_it_said() -> None:
    with pytest.raises(RuntimeError, match="oops"):
        harness.measure(python("raise SystemExit('oops')"))


def test_the_ratio_is_their_median_over_ours() -> None:
    ours, theirs = python("print('{\"seconds\": 2}')"), python("print('{\"seconds\": 6}')")
    comparison = harness.compare("stage", "3x", ours, theirs, rounds=2)
    assert comparison.ratio == 3
    assert comparison.to_json()["stage"] == "stage"


def test_memory_that_is_taken_for_a_while_is_seen() -> None:
    program = "import time; time.sleep(0.5); a = bytearray(300 << 20); time.sleep(0.5); del a; time.sleep(0.3)"
    assert 300 <= harness.measure(python(program)).peak_mib <= 400
