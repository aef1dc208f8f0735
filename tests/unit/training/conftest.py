"""Trainings in tests compute with one thread: tiny networks gain nothing by more, and wait if the processor is busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from segwright.core.torch_threads import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
