"""Markers of all tests: `slow` for `make test-slow`, `gpu` where torch sees a CUDA GPU.

Everything in `e2e` and `fuzz` is slow but for tests marked `smoke`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
SLOW_FOLDERS: Final = {"e2e", "fuzz"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-count", type=int, default=100, help="damaged files that each reader of files gets, on average"
    )
    parser.addoption("--kernels", type=Path, help="folder of the compiled CPU kernels, instead of the package's")
    parser.addoption("--running-test", type=Path, help="file that names the running test and is removed at the end")
    parser.addoption("--fuzz-seed", type=int, default=0, help="decides how they are damaged")


class _RunningTest:
    """Keeps the name of the running test in a file, for `make` to print if a native library aborts the process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.file.write_text(f"{nodeid}\n", encoding="utf-8")

    def pytest_sessionfinish(self) -> None:
        self.file.unlink(missing_ok=True)


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--running-test"):
        config.pluginmanager.register(_RunningTest(file.absolute()))
    if folder := config.getoption("--kernels"):
        from segwright.networks.cpu import library

        library.FOLDER = folder  # type: ignore[misc]  # before any test loads them


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in SLOW_FOLDERS and not item.get_closest_marker("smoke"):
            item.add_marker(pytest.mark.slow)
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
