"""Metric loggers: their protocol, the one that writes `metrics.jsonl`, and a wrapper for loggers that may fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Protocol

from segwright.core.files.atomic_io import append_text, write_text
from segwright.core.files.json_documents import read_json_lines
from segwright.training.monitoring.logbook import Metric

logger = getLogger(__name__)

METRICS_FILE: Final = "metrics.jsonl"


class MetricLogger(Protocol):
    """Receives the metrics of each epoch."""

    def rewind(self, epoch: int) -> None:
        """Drop the metrics from `epoch` on, which is trained again."""
        ...

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Log the metrics of epoch `step`."""
        ...

    def close(self) -> None:
        """Close the logger at the end of a training."""
        ...


class JsonlLogger:
    """Appends one JSON object per epoch to a file; lines of epochs that are trained again are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, epoch: int) -> None:
        """Keep only the lines before `epoch`: a resumed run repeats what came after its checkpoint."""
        self._replace([row for row in read_rows(self.path) if row["epoch"] < epoch])

    def complete(self, rows: Sequence[Mapping[str, Metric]]) -> None:
        """Restore missing or damaged lines from the rows of a checkpoint."""
        self._replace(merge_rows(read_rows(self.path), rows))

    def _replace(self, rows: Sequence[Mapping[str, Metric]]) -> None:
        text = "".join(_line(row) for row in rows)
        before = self.path.read_bytes() if self.path.is_file() else b""
        if text.encode() != before:
            write_text(self.path, text)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Append a line."""
        append_text(self.path, json.dumps({"epoch": step, **metrics}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Do nothing: the file is not held open."""


class SafeLogger:
    """Wraps a logger whose errors must not stop the training: log the first failure, then disable the logger."""

    def __init__(self, wrapped: MetricLogger, name: str) -> None:
        self._wrapped = wrapped
        self._name = name
        self._has_failed = False

    def rewind(self, epoch: int) -> None:
        """Drop the metrics from `epoch` on, if the logger can."""
        rewind = getattr(self._wrapped, "rewind", None)
        if rewind is not None:
            self._try(lambda: rewind(epoch))

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Log the metrics of epoch `step`."""
        self._try(lambda: self._wrapped.log(metrics, step))

    def close(self) -> None:
        """Close the logger."""
        self._try(lambda: self._wrapped.close())

    def _try(self, action: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            action()
        except Exception as error:
            self._has_failed = True
            logger.warning(
                "metric logger %s failed and is disabled (%s: %s); metrics.jsonl has all metrics",
                *(self._name, type(error).__name__, error),
            )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, each with its `epoch`, without lines that are truncated or damaged."""
    if not path.is_file():
        return []
    rows = (row for _, row in read_json_lines(path) if isinstance(row, dict))
    return [row for row in rows if type(row.get("epoch")) is int and _is_finite(row)]


def merge_rows(rows: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows sorted by epoch; epochs that are missing are taken from `known`, e.g. of a checkpoint."""
    by_epoch = {row["epoch"]: row for row in known if type(row.get("epoch")) is int} | {
        row["epoch"]: row for row in rows
    }
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _is_finite(row: Mapping[str, Any]) -> bool:
    """Return whether all numbers of a row are finite; loggers write no others, so otherwise the line is damaged."""
    try:
        _line(row)
    except ValueError:
        return False
    return True


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
