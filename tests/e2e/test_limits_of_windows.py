"""A run, its continuation and a prediction under the limits of Windows and macOS, as far as Linux can enforce them."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from journeys import call

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="open files are found in /proc")

MISSING_ON_WINDOWS = ((signal, "SIGUSR1"), (signal, "SIGKILL"), (os, "sched_getaffinity"), (os, "O_NOFOLLOW"))
MISSING_MODULES = ("resource", "fcntl", "pwd", "grp", "termios")
RUN = ("--config", "3d_fullres", "--folds", "0", "--iterations", "2", "--device", "cpu")


def is_in_use(path: str) -> bool:
    """Return whether this process has a file, or one below a folder, open or mapped."""
    real = os.path.realpath(path)
    used = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    used |= {fields[5] for line in maps if len(fields := line.split(maxsplit=5)) == 6}
    return any(each == real or each.startswith(real + os.sep) for each in used)


def refusing_files_in_use(function: Callable[..., Any], number_of_paths: int) -> Callable[..., Any]:
    """Return a function of `os` that, as on Windows, neither removes nor replaces files in use."""

    def guarded(*arguments: Any, dir_fd: int | None = None, **keywords: Any) -> Any:
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        for path in arguments[:number_of_paths]:
            whole = os.path.join(folder, os.fspath(path))
            if not os.path.islink(whole) and is_in_use(whole):
                raise PermissionError(errno.EACCES, "file in use by this process", whole)
        return function(*arguments, **keywords, **({} if dir_fd is None else {"dir_fd": dir_fd}))

    return guarded


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what Windows lacks, and refuse to remove or replace files in use."""
    for owner, name in MISSING_ON_WINDOWS:
        monkeypatch.delattr(owner, name)
    for name in MISSING_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for name, number_of_paths in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
        monkeypatch.setattr(os, name, refusing_files_in_use(getattr(os, name), number_of_paths))


@pytest.mark.usefixtures("windows")
def test_files_in_use_are_refused_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with path.open(), pytest.raises(PermissionError):
        path.unlink()
    path.unlink()


@pytest.mark.usefixtures("windows")
def test_a_run_continues_and_predicts_without_what_windows_lacks(tiny: Path, tmp_path: Path) -> None:
    assert call("--work", tmp_path, "run", tiny, *RUN, "--epochs", 1).exit_code == 0
    again = call("--work", tmp_path, "run", tiny, *RUN, "--epochs", 2, "--json")
    assert again.exit_code == 0, again.output
    model = tmp_path / "results" / tiny.name / "model"
    arguments = ("predict", "--model", model, "-i", tiny / "imagesTs", "-o", tmp_path / "out", "--device", "cpu")
    assert call(*arguments).exit_code == 0
    assert call(*arguments, "--overwrite").exit_code == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
