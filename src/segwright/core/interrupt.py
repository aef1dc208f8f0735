"""Stop running work early: `StopRequest`, checked between steps, and `Interrupted`, raised on a stop."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from segwright.core.errors import SegwrightError

EXIT_RESUMABLE: Final = 75
"""Exit code of work that was interrupted and can be continued: EX_TEMPFAIL of sysexits.h, known to schedulers."""

HOW_TO_CONTINUE: Final = "continue with 'segwright train --resume', or with the same 'segwright run' as before"
"""End of a message about a training that is saved."""

_MAX_STEP_S: Final = 60.0
"""Seconds to wait at exit; a training step with its checkpoint takes less."""
_MAX_EXIT_S: Final = 5.0


class Interrupted(SegwrightError):
    """Work ended early on request and can be continued; the message says how."""

    exit_code = EXIT_RESUMABLE


class StopRequest:
    """A request to stop, checked by running work; the caller (a signal handler, another thread) does not wait.

    >>> stop = StopRequest()
    >>> with stop.watched():
    ...     stop.request("SIGTERM")
    >>> stop.reason
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.reason = ""
        self._is_watched = False

    def request(self, reason: str) -> None:
        """Request a stop; `reason` is a word for the log, such as the signal's name."""
        self.reason = self.reason or reason

    @property
    def is_watched(self) -> bool:
        """Whether running work checks the request; if none does, the caller has to end the process itself."""
        return self._is_watched

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run a block that checks `reason` between its steps."""
        before, self._is_watched = self._is_watched, True
        try:
            with self.wait_at_exit():
                yield
        finally:
            self._is_watched = before

    @contextmanager
    def wait_at_exit(self) -> Iterator[None]:
        """If the program exits while the block runs in a daemon thread, request a stop and wait for the block.

        Python would end the thread in the middle of torch's C++ code, and that aborts the process.

        Raises:
            Interrupted: the program is already exiting.
        """
        thread, done = threading.current_thread(), threading.Event()

        def end() -> None:
            if not done.is_set():
                self.request("the program is exiting")
                done.wait(_MAX_STEP_S)
                thread.join(_MAX_EXIT_S)

        if thread.daemon:
            _call_at_exit(end)
        try:
            yield
        finally:
            done.set()


def _call_at_exit(function: Callable[[], None]) -> None:
    """Call a function when the main thread has ended, before thread pools are closed: a step in progress needs them.

    `atexit` runs after they are closed; it is used only where this private function of `threading` is missing.
    """
    register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(function)
    except RuntimeError as error:
        raise Interrupted("the program is exiting") from error
