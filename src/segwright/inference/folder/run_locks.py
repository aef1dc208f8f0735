"""Let runs into one folder at the same time only if they predict different cases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import gcd
from pathlib import Path
from typing import Final

from segwright.core.files.locks import locked
from segwright.core.files.names import below
from segwright.inference.folder.log_files import log_name
from segwright.workspace import LOCK

_NAME: Final = re.compile(rf"\.prediction(?:_part_(?P<part>\d+)_of_(?P<parts>\d+))?\.json{re.escape(LOCK)}")


@contextmanager
def lock_part(folder: Path, part: int, parts: int, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a part for the block, while no other run into the folder predicts any of its cases.

    Runs look for one another under the lock of the logs, so of two that start together one sees the other.

    Args:
        folder: output folder.
        part: predicted part, from 0.
        parts: number of parts; 1 for all cases.
        wait: wait for other runs; otherwise raise an error.

    Raises:
        LockHeldError: another run predicts some of the cases, and `wait` is False.
    """
    own = below(folder, f".{log_name(part, parts)}{LOCK}")
    what = f"predicting into {folder}" if parts == 1 else f"predicting part {part} of {parts} into {folder}"
    while True:
        with ExitStack() as logs:
            logs.enter_context(lock_logs(folder))
            other = next((path for path in sorted(folder.glob(".prediction*")) if _overlaps(path, part, parts)), None)
            if other is None:
                with locked(own, what, wait=wait):
                    logs.close()
                    yield
                return
        with locked(other, what, wait=wait):
            pass  # its run has ended, or was killed


def lock_logs(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock under which runs start and logs are joined; only for moments."""
    return locked(below(folder, f".predictions{LOCK}"), f"starting or joining predictions in {folder}")


def _overlaps(path: Path, part: int, parts: int) -> bool:
    """Whether a file is the lock of a run that predicts some case of a part: part i of n has the cases i, i + n, ...

    >>> name = Path(".prediction_part_1_of_4.json.lock")
    >>> _overlaps(name, 2, 4), _overlaps(name, 1, 2), _overlaps(name, 0, 2), _overlaps(name, 0, 3)
    (False, True, False, True)
    """
    found = _NAME.fullmatch(path.name)
    if found is None:
        return False
    return (int(found["part"] or 0) - part) % gcd(int(found["parts"] or 1), parts) == 0
