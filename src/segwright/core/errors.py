"""Errors that a user can cause; each says what was found, what was expected, where, and how to repair it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches

from segwright.core.text import printable


class SegwrightError(ValueError):
    """Error that the user can fix; the command line prints it as one line and exits with 1."""

    exit_code = 1

    def lines(self) -> tuple[str, ...]:
        """Return the message as lines to print; newlines in names are escaped."""
        return (printable(self),)


class DatasetError(SegwrightError):
    """A raw dataset, its `dataset.json`, its splits or its files do not fit together."""


class ImageError(SegwrightError):
    """An image file cannot be read or written."""


class PlanError(SegwrightError):
    """A plan, a configuration or a fingerprint is unusable."""


class ConfigError(SegwrightError):
    """A setting, a component reference or a command-line value is wrong."""


class ModelError(SegwrightError):
    """A model folder, a checkpoint or a network does not fit."""


class WorkspaceError(SegwrightError):
    """A folder is missing, not writable or not ours."""


class DiskError(WorkspaceError):
    """A disk is full, or refuses a file."""


class DownloadError(SegwrightError):
    """A file cannot be downloaded."""


class OutOfMemoryError(SegwrightError):
    """The memory of the machine or of its GPU is used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding.

    Attributes:
        where: file, folder, case or key.
        what: what is wrong there.
        remedy: how to fix it; empty if that is clear.
        case: name of the case that it is about; None if it is not about one.
    """

    where: str
    what: str
    remedy: str = ""
    case: str | None = None

    def __str__(self) -> str:
        return printable(f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else ""))


class ProblemReport(DatasetError):
    """All problems of a dataset or a batch of cases at once, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> tuple[str, ...]:
        """Return one line for each problem."""
        return tuple(str(problem) for problem in self.problems)


def located(error: SegwrightError, where: str) -> SegwrightError:
    """Return the error, of the same type, with a place before its message or before each of its problems.

    >>> str(located(ImageError("cannot be read"), "case 7"))
    'case 7: cannot be read'
    """
    if isinstance(error, ProblemReport):
        return ProblemReport([replace(each, where=f"{where}: {each.where}") for each in error.problems])
    return type(error)(f"{where}: {error}")


def problem_of(error: SegwrightError, *, remedy: str = "") -> Problem:
    """Convert an error with a message `where: what` to a `Problem`."""
    where, _, what = str(error).partition(": ")
    return Problem(where=where, what=what, remedy=remedy)


@contextmanager
def locate_errors(where: str) -> Iterator[None]:
    """Put a place before every user error of the block that does not begin with it; see `located`."""
    try:
        yield
    except SegwrightError as error:
        if str(error).startswith(f"{where}: "):
            raise
        raise located(error, where) from error


@contextmanager
def replaced_in_errors(text: object, other: object) -> Iterator[None]:
    """Replace a text, such as the path of a temporary folder, in every user error of the block."""
    old, new = str(text), str(other)
    try:
        yield
    except ProblemReport as report:
        raise ProblemReport(
            [
                replace(each, where=each.where.replace(old, new), what=each.what.replace(old, new))
                for each in report.problems
            ]
        ) from report
    except SegwrightError as error:
        error.args = (str(error).replace(old, new),)
        raise


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return the end of an error message that suggests a name for a mistyped one.

    >>> did_you_mean("3d_fulres", ["2d", "3d_fullres"])
    "; did you mean '3d_fullres'?"
    >>> did_you_mean("x", ["2d", "3d_fullres"])
    '; choose from 2d, 3d_fullres'
    """
    known = list(choices)
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from {', '.join(known)}" if known else ""
