"""Where metrics go: a small protocol, and the file that is always written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from segwright.core.documents import write_text
from segwright.training.logbook import Metric


class MetricSink(Protocol):
    """Takes the metrics of each epoch."""

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
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if (found := _epoch(line)) is not None and found < epoch]
        if kept != lines:
            write_text(self.path, "".join(kept))

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Append a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"epoch": step, **metrics}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


def _epoch(line: str) -> int | None:
    """Return the epoch of a line; None for one that was cut off."""
    try:
        epoch = json.loads(line).get("epoch") if line.endswith("\n") else None
    except (json.JSONDecodeError, AttributeError):
        return None
    return epoch if isinstance(epoch, int) else None
