"""Where metrics go: a small protocol, the file that is always written, and a guard for those that may fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Protocol

from segwright.core.files.atomic_io import append_text, read_json_lines, write_text
from segwright.training.monitoring.logbook import Metric

logger = getLogger(__name__)

METRICS_FILE: Final = "metrics.jsonl"


class MetricLogger(Protocol):
    """Takes the metrics of each epoch."""

    def rewind(self, epoch: int) -> None:
        """Forget what came from `epoch` on: it is trained again."""
        ...

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Take the metrics of epoch `step`."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class JsonlLogger:
    """Appends one JSON object per epoch to a file; lines of epochs that are trained again are dropped first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, epoch: int) -> None:
        """Keep the lines before `epoch` alone: a resumed run repeats what came after its checkpoint."""
        self._replace([row for row in read_rows(self.path) if row["epoch"] < epoch])

    def complete(self, rows: Sequence[Mapping[str, Metric]]) -> None:
        """Write lines that are lost or damaged anew, from rows that a checkpoint kept."""
        self._replace(completed(read_rows(self.path), rows))

    def _replace(self, rows: Sequence[Mapping[str, Metric]]) -> None:
        text = "".join(_line(row) for row in rows)
        before = self.path.read_bytes() if self.path.is_file() else b""
        if text.encode() != before:
            write_text(self.path, text)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Append a line."""
        append_text(self.path, json.dumps({"epoch": step, **metrics}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class SafeLogger:
    """Keeps the failures of another sink from the training: the first is told, and then it is left alone."""

    def __init__(self, sink: MetricLogger, name: str) -> None:
        self._sink = sink
        self._name = name
        self._has_failed = False

    def rewind(self, epoch: int) -> None:
        """Forget what came from `epoch` on, where the sink can."""
        rewind = getattr(self._sink, "rewind", None)
        if rewind is not None:
            self._try(lambda: rewind(epoch))

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Hand the metrics on."""
        self._try(lambda: self._sink.log(metrics, step))

    def close(self) -> None:
        """Finish."""
        self._try(self._sink.close)

    def _try(self, action: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            action()
        except Exception as error:
            self._has_failed = True
            logger.warning(
                "sink %s failed and gets no more metrics (%s: %s); metrics.jsonl has all of them",
                *(self._name, type(error).__name__, error),
            )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, each with its `epoch`; a line that is cut off or damaged is left out."""
    if not path.is_file():
        return []
    rows = (row for _, row in read_json_lines(path) if isinstance(row, dict))
    return [row for row in rows if type(row.get("epoch")) is int]


def completed(rows: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return rows by epoch, those that lack taken from `known`, e.g. of a checkpoint."""
    found = {row["epoch"]: row for row in known if type(row.get("epoch")) is int} | {row["epoch"]: row for row in rows}
    return [found[epoch] for epoch in sorted(found)]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
