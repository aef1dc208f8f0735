"""Being asked to end: a request that work looks at between its steps, and the error by which it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from segwright.core.errors import SegwrightError

EXIT_RESUMABLE: Final = 75
"""Exit code of work that was interrupted and can be continued: EX_TEMPFAIL of sysexits.h, which schedulers know."""


class Interrupted(SegwrightError):
    """Work ended early because it was asked to; the same command goes on from there."""

    exit_code = EXIT_RESUMABLE


class StopRequest:
    """Tells work that it shall end; whoever asks (a signal handler, another thread) does not wait.

    >>> stop = StopRequest()
    >>> with stop.heeded():
    ...     stop.ask("SIGTERM")
    >>> stop.reason
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.reason = ""
        self._is_heeded = False

    def ask(self, reason: str) -> None:
        """Ask for the end; `reason` is a word for the log, such as the signal's name."""
        self.reason = self.reason or reason

    @property
    def is_heeded(self) -> bool:
        """Whether work goes on that looks at the request; if none does, the asker has to end the process itself."""
        return self._is_heeded

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Run a block that looks at `reason` between its steps."""
        before, self._is_heeded = self._is_heeded, True
        try:
            yield
        finally:
            self._is_heeded = before
