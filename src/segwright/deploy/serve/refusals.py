"""Refusals of a request: HTTP status, what is wrong, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from segwright.core.errors import DiskError, OutOfMemoryError, SegwrightError


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: HTTP status code.
        what: what is wrong.
        expected: what was expected; empty where `what` says it.
        remedy: what the client can do.
        headers: of the answer, such as Retry-After.
    """

    def __init__(
        self, status: int, what: str, *, expected: str = "", remedy: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.expected = expected
        self.remedy = remedy
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, dict[str, object]]:
        """Return the body of the answer."""
        return {
            "error": {
                "status": self.status,
                "what": self.what,
                "expected": self.expected,
                "remedy": self.remedy,
            }
        }


def refusal_of(error: SegwrightError, status: int, *hidden: str) -> Refusal:
    """Return the refusal for an error of the library.

    Args:
        error: the error; the part of its message after the last semicolon says what to do.
        status: HTTP status code, unless disk or memory are the cause, which gives 503.
        hidden: parts of the message that clients need not see, such as folders of this machine.
    """
    text = " ".join(error.lines())
    for part in hidden:
        text = text.replace(part, "")
    what, _, remedy = text.rpartition("; ")
    if what.count("(") > what.count(")") and remedy.endswith(")"):  # "cannot be read (reason; remedy)"
        what, remedy = f"{what})", remedy[:-1]
    used = 503 if isinstance(error, DiskError | OutOfMemoryError) else status
    return Refusal(used, what or remedy, remedy=remedy if what else "")
