"""How many damaged files each reader gets, and which: `pytest tests/fuzz --fuzz-count 10000 --fuzz-seed 7`."""

from __future__ import annotations

import pytest


@pytest.fixture
def fuzz_count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-count"))


@pytest.fixture
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-seed"))
