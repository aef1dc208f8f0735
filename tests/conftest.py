"""Tests marked `gpu` run where torch sees a CUDA GPU, and are skipped elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-count", type=int, default=100, help="damaged files that each reader of files gets, on average"
    )
    parser.addoption("--fuzz-seed", type=int, default=0, help="decides how they are damaged")


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """Return what limits the size of new files in a block, as a disk that is nearly full does."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
