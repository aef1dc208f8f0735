"""A predictor in a user's own program: it neither grows nor starts processes, and lives wherever it is put."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "live_long.py"
GROWTH_MIB = 4
SMALL_SHM = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc"),
]


def found(way: str, model: Path, *prefix: str) -> dict[str, Any]:
    command = [*prefix, sys.executable, str(PROGRAM), way, str(model)]
    if prefix:
        command = [*prefix, f"{SMALL_SHM}{sys.executable} {PROGRAM} {way} {model}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    findings: dict[str, Any] = json.loads(output)
    assert len(findings["labels"]) > 1
    return findings


def test_a_hundred_predictions_neither_grow_nor_start_processes(make_model: Callable[..., Path]) -> None:
    findings = found("repeat", make_model(0))
    assert findings["last_mib"] <= findings["settled_mib"] + GROWTH_MIB
    assert findings["children"] == 0


def test_a_daemon_forked_after_a_prediction_predicts_the_same(make_model: Callable[..., Path]) -> None:
    assert found("fork", make_model(0))["same"] == [True, True]


def test_shared_memory_is_not_needed(make_model: Callable[..., Path]) -> None:
    unshare = shutil.which("unshare")
    probe = unshare and subprocess.run([unshare, "-rm", "sh", "-c", SMALL_SHM + "true"], capture_output=True)
    if not probe or probe.returncode:
        pytest.skip("mounting a small /dev/shm is not permitted here")
    findings = found("repeat", make_model(0), str(unshare), "-rm", "sh", "-c")
    assert findings["children"] == 0
