"""The logbook of a training with a trainer file: what either side logs, the other sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from segwright.compat.nnunet.names.logging import KEYS
from segwright.compat.nnunet.trainer import nnUNetTrainer
from segwright.training.monitoring.logbook import Logbook, Metric


class RunLogbook(Logbook):
    """Our logbook, which also logs nnU-Net's keys with the file's `logger`, and takes over what that has.

    Args:
        user: the object of the trainer file.
        rows: metrics so far.
    """

    def __init__(self, user: nnUNetTrainer, rows: Sequence[Mapping[str, Metric]] = ()) -> None:
        super().__init__(rows)
        self._user = user

    def log(self, key: str, value: float | Sequence[float], epoch: int) -> None:
        """Set one metric of an epoch, here and in the file's logger."""
        super().log(key, value, epoch)
        if key in KEYS:
            self._user.logger.log(key, value, epoch)

    def pull(self, epoch: int) -> None:
        """Take over what the file's logger has for an epoch, as far as it is numbers."""
        for key, values in self._lists().items():
            if len(values) > epoch:
                metric = _metric(values[epoch])
                if metric is not None:
                    super().log(key, metric, epoch)

    @contextmanager
    def keeping(self, epoch: int) -> Iterator[None]:
        """Run a block that logs, then restore what the file logged itself for that epoch."""
        before = {key: values[epoch] for key, values in self._lists().items() if len(values) > epoch}
        yield
        lists = self._lists()
        for key, value in before.items():
            lists[key][epoch] = value
        self.pull(epoch)

    def replay(self) -> None:
        """Log all rows with the file's logger, which is new."""
        lists = self._lists()
        for epoch, row in enumerate(self.rows):
            for key, value in row.items():
                if key in KEYS or key in lists:
                    values = lists.setdefault(key, [])
                    values.extend([math.nan] * (epoch - len(values)))
                    values[epoch:] = [_or_nan(value)]

    def _lists(self) -> dict[str, list[Any]]:
        logger = self._user.logger
        source = getattr(logger, "local_logger", logger)
        lists: dict[str, list[Any]] = getattr(source, "my_fantastic_logging", {})
        return lists


def _metric(value: Any) -> float | list[float] | None:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bool) or not isinstance(value, int | float | list | tuple):
        return None
    if isinstance(value, int | float):
        return value
    if all(isinstance(each, int | float | np.number) for each in value):
        return [float(each) for each in value]
    return None


def _or_nan(value: Metric) -> Any:
    if isinstance(value, list):
        return [math.nan if each is None else each for each in value]
    return math.nan if value is None else value
