"""Loading a model and predicting in a user's own program leaves the settings of its process as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "process_settings.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_prediction_changes_no_setting_of_the_process(make_model: Callable[..., Path]) -> None:
    command = [sys.executable, str(PROGRAM), str(make_model(0))]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert found["changed"] == []
    assert found["called"] == []
    assert found["kept"] < 0.1
