"""Collect the cases that fail while the others are predicted, and name the case in every error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from logging import getLogger

from segwright.core.errors import DiskError, OutOfMemoryError, Problem, ProblemReport, SegwrightError, WorkspaceError
from segwright.core.resources import resource_error
from segwright.data.cases import Case
from segwright.inference.prediction import CaseRecord

logger = getLogger(__name__)


class Failures:
    """Cases that could not be read or predicted; they are reported together at the end.

    Args:
        problems: of cases whose files were refused before the run.
    """

    def __init__(self, problems: Sequence[Problem] = ()) -> None:
        self._problems = list(problems)
        self._num_refused = len({problem.case for problem in problems})
        for problem in problems:
            logger.warning("%s; continuing with the other cases", problem)

    @contextmanager
    def collect(self, case: Case) -> Iterator[None]:
        """Record an error of a case; errors of the disk or the output folder are raised."""
        try:
            yield
        except WorkspaceError:
            raise
        except SegwrightError as error:
            what = str(error).removeprefix(f"{case.identifier}: ")
            # The text alone: the error's traceback may hold arrays.
            self._problems.append(Problem(where=case.identifier, what=what, case=case.identifier))
            logger.warning("%s: not predicted (%s); continuing with the other cases", case.identifier, what)

    def result(self, case: Case, export: Future[CaseRecord]) -> list[CaseRecord]:
        """Wait for the export of a case; return its record, or nothing if it failed."""
        with self.collect(case):
            return [export.result()]
        return []

    def raise_if_any(self, num_cases: int) -> None:
        """Raise a ProblemReport if any of `num_cases` or the refused ones failed."""
        if not self._problems:
            return
        problems = sorted(self._problems, key=lambda problem: problem.where)
        if num_cases + self._num_refused > 1:
            failed = len({problem.case for problem in problems})
            logger.warning("%d of %d cases were not predicted", failed, num_cases + self._num_refused)
        raise ProblemReport(problems)


@contextmanager
def case_in_errors(case: Case) -> Iterator[None]:
    """Put the case's name before every error of the block that does not begin with it; blocks may be nested.

    Only errors of disk and memory keep their type. Any other `WorkspaceError` concerns this case alone, so it becomes a
    `SegwrightError`, which `Failures.collect` does not raise.
    """
    name = case.identifier
    try:
        yield
    except SegwrightError as error:
        if str(error).startswith(name):
            raise
        kind = type(error) if isinstance(error, DiskError | OutOfMemoryError) else SegwrightError
        raise kind(f"{name}: {error}") from error
    except Exception as error:
        if str(error).startswith(f"{name}: "):
            raise
        if known := resource_error(error):
            raise type(known)(f"{name}: {known}") from error
        raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
