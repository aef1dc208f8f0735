from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segwright.training.monitoring.run_record import warn_of_other_threads


def record(threads: int, *, deterministic: bool = True) -> dict[str, Any]:
    return {"threads": threads, "config": {"deterministic": deterministic}}


@pytest.mark.parametrize(
    ("before", "now", "is_named"),
    [
        (json.dumps(record(4)), record(2), True),
        (json.dumps(record(4)), record(4), False),
        (json.dumps(record(4)), record(2, deterministic=False), False),
        ("{}", record(2), False),
        ("[", record(2), False),
        (None, record(2), False),
    ],
)
def test_other_threads_of_a_deterministic_training_are_named(
    before: str | None, now: dict[str, Any], is_named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if before is not None:
        (tmp_path / "train.json").write_text(before)
    warn_of_other_threads(tmp_path, now)
    assert (("ran with 4 threads and goes on with 2" in caplog.text), bool(caplog.text)) == (is_named, is_named)
