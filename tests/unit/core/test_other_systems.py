"""What differs on Windows and macOS, by the settings and functions that decide it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segwright.cli import launch, signals
from segwright.core import memory, parallel
from segwright.core.files import names
from segwright.core.files.names import name_problem
from segwright.data import cases, training_data

WINDOWS = (
    "import os, signal, sys; del signal.SIGUSR1, signal.SIGKILL, os.sched_getaffinity, os.O_NOFOLLOW; "
    "sys.modules |= dict.fromkeys(['resource', 'fcntl', 'termios', 'grp'])"
)


@pytest.mark.parametrize("name", ["CON", "nul", "aux.nii.gz", "Com1.json", "lpt9", "a:b", "what?", "x.", "x "])
def test_names_that_windows_cannot_store_are_refused_there_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not name_problem(name)
    monkeypatch.setattr(names, "ON_WINDOWS", True)
    assert "Windows" in name_problem(name)


@pytest.mark.parametrize("name", ["console", "nulls.nii.gz", "com", "com12", "prn_1", "a.b", "a b"])
def test_usual_names_are_taken_on_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "ON_WINDOWS", True)
    assert not name_problem(name)


def test_cases_that_differ_in_case_only_are_refused_where_they_share_files(monkeypatch: pytest.MonkeyPatch) -> None:
    identifiers = ["A", "a", "b"]
    assert not cases.identity_problems(Path("dataset.json"), identifiers)
    monkeypatch.setattr(cases, "IGNORES_CASE", True)
    (problem,) = cases.identity_problems(Path("dataset.json"), identifiers)
    assert problem.case == "a"
    assert "appears twice, as 'A' too" in problem.what


def test_stored_paths_are_relative_with_slashes(tmp_path: Path) -> None:
    assert training_data._relative(tmp_path / "imagesTr" / "a.png", tmp_path) == "imagesTr/a.png"
    assert training_data._relative(tmp_path.parent / "a.png", tmp_path) == str(tmp_path.parent / "a.png")


def test_peak_memory_is_unknown_without_the_module_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_bytes() is None


def test_available_memory_is_known_without_proc_and_sysconf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.available_bytes() > 2**28
    monkeypatch.delattr(os, "sysconf_names")
    assert memory.available_bytes() == 2**32


def test_cpus_are_counted_without_an_affinity_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(parallel, "_CGROUP_QUOTA", tmp_path / "none")
    assert parallel.available_cpus() == 6


def test_signals_that_a_system_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGUSR1", raising=False)
    assert signals.known_signals() == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_the_command_line_is_imported_without_what_windows_lacks() -> None:
    code = f"{WINDOWS}; import segwright.cli.main, segwright.cli.launch as launch; print(launch._STOPPED)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((75, -signal.SIGTERM, -signal.SIGTERM))


def test_a_signal_that_cannot_be_sent_is_left_to_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    class Child:
        """A process that ends after the signal, which it cannot be sent."""

        returncode: int | None = None

        def poll(self) -> int | None:
            if self.returncode is None:
                os.kill(os.getpid(), signal.SIGINT)
                self.returncode = 75
                return None
            return self.returncode

        def send_signal(self, number: int) -> None:
            raise ValueError(f"Unsupported signal: {number}")

    child = Child()
    monkeypatch.setattr(launch, "_POLL_S", 0.0)
    assert launch._wait([child]) == 0  # type: ignore[list-item]
