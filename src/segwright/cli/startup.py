"""Prepare the process before a command runs; must come before torch is imported."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Final

_SPIN_COUNT: Final = "3000"
"""Rounds that a waiting OpenMP thread spins, about ten microseconds."""


def leave_deleted_folder() -> None:
    """Change to another folder if the current one was deleted, since MKL aborts processes in deleted folders.

    Relative paths are meaningless then; in /proc no file can be created, so no result is lost in a random place.
    """
    try:
        os.getcwd()
    except OSError:
        os.chdir("/proc/self" if os.path.isdir("/proc/self") else os.sep)


def shorten_openmp_spinning() -> None:
    """Let waiting OpenMP threads spin for microseconds instead of milliseconds; must run before torch is imported.

    Threads synchronise thousands of times per forward pass. GNU OpenMP's default of 300,000 rounds blocks a core that
    another program or the last thread needs (see benchmarks/LOG.md). Variables set by the user win.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def escape_unencodable_output() -> None:
    """Escape characters that the terminal's encoding lacks, instead of failing after the work is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
