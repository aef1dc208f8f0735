"""Where metrics go: a small protocol, the file that is always written, and a guard for those that may fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol

from segwright.core.documents import append_text, read_json_lines, write_text
from segwright.training.logbook import Metric

logger = getLogger(__name__)


class MetricSink(Protocol):
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


class JsonlSink:
    """Appends one JSON object per epoch to a file; lines of epochs that are trained again are dropped first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, epoch: int) -> None:
        """Keep the lines before `epoch` alone: a resumed run repeats what came after its checkpoint."""
        if not self.path.is_file():
            return
        lines = read_json_lines(self.path)
        whole = ((line, _epoch(row)) for line, row in lines if line.endswith("\n"))
        kept = [line for line, found in whole if found is not None and found < epoch]
        if len(kept) < len(lines):
            write_text(self.path, "".join(kept))

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Append a line."""
        append_text(self.path, json.dumps({"epoch": step, **metrics}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


class ForgivingSink:
    """Keeps the failures of another sink from the training: the first is told, and then it is left alone."""

    def __init__(self, sink: MetricSink, name: str) -> None:
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


def _epoch(row: Any) -> int | None:
    """Return the epoch of a line; None for one that is damaged."""
    epoch = row.get("epoch") if isinstance(row, dict) else None
    return epoch if type(epoch) is int else None
