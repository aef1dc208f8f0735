"""Metric loggers for TensorBoard, MLflow and Weights & Biases, if installed, and loading of a user's own ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.files.names import below
from segwright.training.monitoring.logbook import Metric
from segwright.training.monitoring.loggers import MetricLogger, SafeLogger

logger = getLogger(__name__)

LoggerFactory = Callable[[Path], MetricLogger]
"""Called with the fold's folder when the training starts."""


def flatten(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, float]]:
    """Yield name and value of an epoch's numbers, those of classes as `name/class_1`, `name/class_2` like nnU-Net.

    nnU-Net behaviour 8.3.

    >>> dict(flatten({"lrs": 0.01, "dice_per_class_or_region": [0.5, None, 0.25], "ema_fg_dice": None}))
    {'lrs': 0.01, 'dice_per_class_or_region/class_1': 0.5, 'dice_per_class_or_region/class_3': 0.25}
    """
    for name, value in metrics.items():
        if isinstance(value, list):
            yield from ((f"{name}/class_{index}", part) for index, part in enumerate(value, 1) if part is not None)
        elif value is not None:
            yield name, value


class TensorBoardLogger:
    """Writes events into `tensorboard/` of the fold's folder (package `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = below(folder, "tensorboard")
        self._first = 0
        self._writer: Any = None

    def rewind(self, epoch: int) -> None:
        """Let TensorBoard drop what an earlier run wrote from `epoch` on."""
        self._first = epoch

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Write one epoch."""
        if self._writer is None:
            module = import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(str(self._folder), purge_step=self._first)
        for name, value in flatten(metrics):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class MLflowLogger:
    """Logs to MLflow: to its configured tracking URI, else to `mlruns/` in the fold's folder."""

    def __init__(self, folder: Path) -> None:
        self._mlflow = import_module("mlflow")
        if not self._mlflow.is_tracking_uri_set():
            self._mlflow.set_tracking_uri(below(folder, "mlruns").absolute().as_uri())
        self._run = self._mlflow.start_run(run_name=_run_name(folder))

    def rewind(self, epoch: int) -> None:
        """Do nothing: a resumed training is a new run."""

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Log one epoch."""
        self._mlflow.log_metrics(dict(flatten(metrics)), step=step, run_id=self._run.info.run_id)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandbLogger:
    """Logs to Weights & Biases; a resumed training continues the same run."""

    def __init__(self, folder: Path) -> None:
        wandb = import_module("wandb")
        identity = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=8).hexdigest()
        self._run = wandb.init(dir=str(folder), id=identity, name=_run_name(folder), resume="allow")

    def rewind(self, epoch: int) -> None:
        """Do nothing: Weights & Biases drops steps that it already has."""

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Log one epoch."""
        self._run.log(dict(flatten(metrics)), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


LOGGERS: Final[Registry[LoggerFactory]] = Registry("metric logger")
LOGGERS.register("tensorboard", TensorBoardLogger)
LOGGERS.register("mlflow", MLflowLogger)
LOGGERS.register("wandb", WandbLogger)


def require_loggers(references: Sequence[str]) -> None:
    """Check before a training that its loggers are available.

    Raises:
        ConfigError: a name is unknown, or a package is not installed.
    """
    for reference in references:
        find_factory(reference)
        if reference in LOGGERS.names() and find_spec(reference) is None:
            raise ConfigError(
                f"metric logger '{reference}' needs the package {reference}; install it, or drop it from loggers"
            )


def find_factory(reference: str) -> LoggerFactory:
    """Return the logger factory of a registered name or a `module:attr` reference."""
    found: Any = import_reference(reference, kind="metric logger") if ":" in reference else LOGGERS.get(reference)
    if not callable(found):
        raise ConfigError(
            f"metric logger '{reference}' cannot be called; name a class or function fn(folder) -> logger"
        )
    make: LoggerFactory = found
    return make


def open_loggers(references: Sequence[str], folder: Path) -> list[MetricLogger]:
    """Open the loggers of a fold; log those that cannot be opened, and leave them out."""
    loggers: list[MetricLogger] = []
    for reference in references:
        make = find_factory(reference)
        try:
            loggers.append(SafeLogger(_required_logger(make(folder)), reference))
        except Exception as error:
            logger.warning(
                "metric logger %s cannot be opened (%s: %s); metrics.jsonl has all metrics",
                *(reference, type(error).__name__, error),
            )
    return loggers


def _required_logger(made: MetricLogger) -> MetricLogger:
    missing = [name for name in ("log", "close") if not callable(getattr(made, name, None))]
    if missing:
        raise TypeError(
            f"it made a {type(made).__name__} without {' and '.join(missing)}; expected fn(folder) -> logger with "
            "log(metrics, step) and close()"
        )
    return made


def _run_name(folder: Path) -> str:
    return "/".join(folder.absolute().parts[-3:])
