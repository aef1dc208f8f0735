"""Resident memory of prediction and export: read from the system in a process of its own, so Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

HERE = Path(__file__).parent
BUDGET_MIB = 256
ROUNDS = 2
"""The allocator's own mood is some percent, so twice if need be; one more copy of the image would be 20."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]


def measured(*arguments: object) -> dict[str, float]:
    program = [sys.executable, str(HERE / "measure_memory.py"), *map(str, arguments)]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


@pytest.mark.parametrize("heads", [2, 25, 105, 300])
def test_labels_need_little_beside_the_logits(heads: int) -> None:
    found = measured("export", heads)
    assert found["extra_mib"] <= 2 * found["label_mib"] + BUDGET_MIB
    # All classes on the original grid at once would break the bound.
    if heads >= 25:
        assert found["whole_mib"] > 2 * found["label_mib"] + BUDGET_MIB


@pytest.mark.parametrize("what", ["predict", "files"])
def test_memory_does_not_grow_with_the_long_axis(what: str) -> None:
    shorts: list[float] = []
    longs: list[float] = []
    for _ in range(ROUNDS):
        shorts.append(measured(what, 512)["beyond_arrays_mib"])
        longs.append(measured(what, 4096)["beyond_arrays_mib"])
        if min(longs) <= 1.05 * median(shorts):
            return
    pytest.fail(f"{shorts} MiB, then {longs}")


def test_an_ensemble_never_holds_the_probabilities_of_a_case() -> None:
    found = measured("average", 32)
    assert found["extra_mib"] <= 2 * found["label_mib"] + BUDGET_MIB < found["whole_mib"]
