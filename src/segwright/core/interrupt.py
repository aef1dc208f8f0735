"""Being asked to end: a request that work looks at between its steps, and the error by which it ends."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from segwright.core.errors import SegwrightError

EXIT_RESUMABLE: Final = 75
"""Exit code of work that was interrupted and can be continued: EX_TEMPFAIL of sysexits.h, which schedulers know."""

_LONGEST_STEP_S: Final = 60.0
"""A step of training and the checkpoint after it take less."""
_LONGEST_FAREWELL_S: Final = 5.0


class Interrupted(SegwrightError):
    """Work ended early because it was asked to; the same command goes on from there."""

    exit_code = EXIT_RESUMABLE


class StopRequest:
    """Tells work that it shall end; whoever asks (a signal handler, another thread) does not wait.

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
        """Ask for the end; `reason` is a word for the log, such as the signal's name."""
        self.reason = self.reason or reason

    @property
    def is_watched(self) -> bool:
        """Whether work goes on that looks at the request; if none does, the asker has to end the process itself."""
        return self._is_watched

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run a block that looks at `reason` between its steps."""
        before, self._is_watched = self._is_watched, True
        try:
            with self.wait_at_exit():
                yield
        finally:
            self._is_watched = before

    @contextmanager
    def wait_at_exit(self) -> Iterator[None]:
        """Let a program that ends wait for a block in a daemon thread, which is asked to stop.

        Python would end the thread in the middle of torch's C++ code, and that aborts the process.

        Raises:
            Interrupted: the program is ending already.
        """
        thread, done = threading.current_thread(), threading.Event()

        def end() -> None:
            if not done.is_set():
                self.request("the program ended")
                done.wait(_LONGEST_STEP_S)
                thread.join(_LONGEST_FAREWELL_S)

        if thread.daemon:
            _call_at_exit(end)
        try:
            yield
        finally:
            done.set()


def _call_at_exit(function: Callable[[], None]) -> None:
    """Call a function when the main thread has ended, before thread pools are closed: a step in progress needs them.

    `atexit` comes after them; only where this private part of `threading` is gone it has to do.
    """
    register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(function)
    except RuntimeError as error:
        raise Interrupted("the program ended") from error
