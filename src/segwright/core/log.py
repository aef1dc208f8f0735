"""Show progress and log lines on stderr: a bar with an ETA on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, TypeVar

from segwright.core.text import printable

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


def configure(verbosity: int = 0) -> None:
    """Send the log of this package to stderr; for the command line alone (a library never configures handlers)."""
    package = logging.getLogger("segwright")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(message)s"))
    package.handlers[:] = [handler]
    package.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    package.propagate = False


def progress(items: Iterable[T], *, title: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show progress; silent without a title, or where info is not logged."""
    if not title or not logger.isEnabledFor(logging.INFO):
        yield from items
    elif is_live():
        yield from _bar(items, title, total)
    else:
        yield from _lines(items, title, total)


def is_live() -> bool:
    """Return whether progress is shown by drawing again and again: info is logged, and stderr is a terminal."""
    return logger.isEnabledFor(logging.INFO) and sys.stderr.isatty()


@contextmanager
def live(draw: Callable[[], ConsoleRenderable]) -> Iterator[None]:
    """Show at the bottom of the terminal what `draw` returns, twice a second; log lines appear above it."""
    from rich.console import Console
    from rich.live import Live

    handlers = [each for each in logging.getLogger("segwright").handlers if isinstance(each, logging.StreamHandler)]
    streams = [handler.stream for handler in handlers]
    with Live(get_renderable=draw, console=Console(stderr=True), refresh_per_second=2):
        for handler in handlers:
            handler.setStream(sys.stderr)  # that of rich, which prints above the table
        try:
            yield
        finally:
            for handler, stream in zip(handlers, streams, strict=True):
                handler.setStream(stream)


class _PlainFormatter(logging.Formatter):
    """Formats a record as one line, whatever the names in it hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, escaped; a traceback that follows it keeps its lines."""
        plain = copy(record)
        plain.msg, plain.args = printable(record.getMessage()), None
        return super().format(plain)


def _bar(items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    yield from track(
        items, description=escape(printable(title)), total=total, console=Console(stderr=True), transient=True
    )


def _lines(items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            left = f", about {(now - start) / count * (total - count):.0f} s left" if total else ""
            logger.info("%s: %d%s%s", title, count, f" of {total}" if total else "", left)
    logger.info("%s: %d done in %.1f s", title, count, time.monotonic() - start)
