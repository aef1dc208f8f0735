"""Run measurements one after the other within a time limit; leave out what does not fit, and say so."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness import last_json

ROOT: Final = Path(__file__).parents[2]
OVERTIME: Final = 4.0
"""A measurement is stopped when it takes this many times its estimate."""
_ERROR_CHARS: Final = 600

Figures = Mapping[str, object]
Measure = Callable[[float], Figures]
"""Measures something; ends at a time of `time.monotonic`."""


class MeasurementError(Exception):
    """A measurement failed or took too long."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A measurement.

    Attributes:
        name: parts separated by `/`.
        estimate_s: seconds that must be left for it to begin.
        measure: returns the figures.
        not_available: why it cannot be measured; empty if it can.
    """

    name: str
    estimate_s: float
    measure: Measure
    not_available: str = ""


def run_items(
    items: Sequence[Item], *, end: float, now: Callable[[], float] = time.monotonic
) -> Iterator[dict[str, object]]:
    """Yield the result of each item: its name, a status, the figures or the reason why there are none.

    Args:
        items: the most important first.
        end: time of `now` at which all must have ended.
        now: a monotonic clock in seconds.
    """
    for item in items:
        yield {"name": item.name, **_result(item, end=end, now=now)}


def _result(item: Item, *, end: float, now: Callable[[], float]) -> dict[str, object]:
    if item.not_available:
        return {"status": "not available", "reason": item.not_available}
    start = now()
    if end - start < item.estimate_s:
        left_s = max(end - start, 0.0)
        return {"status": "skipped", "reason": f"it takes about {item.estimate_s:.0f} s, and {left_s:.0f} s are left"}
    try:
        figures = item.measure(min(end, start + OVERTIME * item.estimate_s))
    except MeasurementError as error:
        return {"status": "failed", "reason": str(error), "took_s": now() - start}
    return {"status": "measured", **figures, "took_s": now() - start}


def run_program(
    arguments: Sequence[str], *, end: float, environment: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Run a program in the root of the repository; return the JSON object in the last line of its output.

    Args:
        arguments: the command.
        end: time of `time.monotonic` at which it and the processes that it started are killed.
        environment: of the program; that of this process by default.

    Raises:
        MeasurementError: it fails or takes too long.
    """
    limit_s = max(end - time.monotonic(), 0.0)
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"stopped after {limit_s:.0f} s, which was too long") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise MeasurementError(f"exit code {process.returncode}: {errors.strip()[-_ERROR_CHARS:]}")
    return last_json(output)
