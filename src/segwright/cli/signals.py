"""Stop signals: a training saves after its current step, everything else ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from segwright.core.interrupt import Interrupted, StopRequest

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


class StopSignal(BaseException):
    """A signal ends the work at once; no error, so that it is not taken for the failure of one case."""


@contextmanager
def stop_on_signals(doing: str = "saving after this step") -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 (SLURM's warning before the time limit) and Ctrl-C into a stop request.

    `doing` is what the block does then, for the user.
    A second signal, or one while no training runs, raises `StopSignal` or `KeyboardInterrupt` in the block.

    Raises:
        Interrupted: a `StopSignal` ended the block.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.is_watched and not stop.reason:
            stop.request(name)
            typer.echo(f"{name}: {doing}; send the signal again to quit now", err=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise StopSignal(name)

    before = {number: signal.signal(number, handle) for number in known_signals()}
    try:
        yield stop
    except StopSignal as ended:
        message = f"stopped by {ended}; finished work is kept, run the same command again to continue"
        raise Interrupted(message) from ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def known_signals() -> list[signal.Signals]:
    """Return the signals that this system supports; Windows has no SIGUSR1."""
    return [found for found in (getattr(signal, name, None) for name in SIGNALS) if found is not None]
