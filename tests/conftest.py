"""Markers of all tests: `slow` for `make test-slow`, `gpu` where torch sees a CUDA GPU.

Everything in `e2e` and `fuzz` is slow but for tests marked `smoke`.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import hypothesis
import pytest

hypothesis.settings.register_profile("busy machines", deadline=None)
hypothesis.settings.load_profile("busy machines")

TESTS: Final = Path(__file__).parent
SLOW_FOLDERS: Final = {"e2e", "fuzz"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-count", type=int, default=100, help="damaged files that each reader of files gets, on average"
    )
    parser.addoption("--kernels", type=Path, help="folder of the compiled CPU kernels, instead of the package's")
    parser.addoption("--installed", action="store_true", help="fail unless segwright is imported from site-packages")
    parser.addoption("--crash-report", type=Path, help="file that stays if a native library ends the process")
    parser.addoption("--fuzz-seed", type=int, default=0, help="decides how they are damaged")


class _CrashReport:
    """Keeps a file with the running test, to which Python adds all stacks if a native library ends the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w", encoding="utf-8")

    def pytest_sessionstart(self) -> None:
        faulthandler.enable(self.file)  # after pytest's own plugin, which writes to stderr

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.file.write(f"{nodeid}\n")
        self.file.flush()

    def pytest_unconfigure(self) -> None:
        faulthandler.disable()
        self.file.close()
        self.path.unlink()


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--crash-report"):
        config.pluginmanager.register(_CrashReport(path.absolute()))
    if config.getoption("--installed"):
        import segwright

        if "site-packages" not in Path(segwright.__file__).parts:
            raise pytest.UsageError(f"--installed: segwright is imported from {segwright.__file__}")
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
