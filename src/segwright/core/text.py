"""Make text from files and names safe to show on a terminal, in a log and in an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_JOINERS: Final = "\u200c\u200d"
"""Invisible, but part of the spelling of Persian, of Indian languages and of emoji."""

MAX_LISTED: Final = 8
"""Values that `listed` shows."""


def printable(text: object) -> str:
    r"""Return a text on one line, every unprintable character escaped.

    These are control characters (ESC, newline), characters that change the direction of writing, line separators, and
    the surrogates that represent the bytes of a file name that is not UTF-8.

    >>> printable("a\nb\x1b[31m \udcfc")
    'a\\nb\\x1b[31m \\udcfc'
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(char if char.isprintable() or char in _JOINERS else _escape(char) for char in whole)


def listed(values: Sequence[object], *, limit: int = MAX_LISTED) -> str:
    """Return values separated by commas, at most `limit` of them.

    >>> listed([1, 2, 3], limit=2)
    '1, 2, ...'
    """
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (", ..." if len(values) > limit else "")


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def short_duration(seconds: float) -> str:
    """Format a duration in the form in which budgets are given, to a tenth of a second.

    >>> short_duration(600), short_duration(5400), short_duration(90.04)
    ('10m', '1h30m', '1m30s')
    """
    rest = round(seconds, 1)
    hours, minutes = int(rest // 3600), int(rest % 3600 // 60)
    parts = [(hours, "h"), (minutes, "m"), (round(rest - 3600 * hours - 60 * minutes, 1), "s")]
    return "".join(f"{value:g}{unit}" for value, unit in parts if value) or "0s"
