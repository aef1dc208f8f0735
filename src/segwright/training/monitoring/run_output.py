"""Output of a training: text log, metric loggers, `status.json`, plots, records, warnings about its classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import sweep_leftovers
from segwright.data.description import DatasetDescription
from segwright.data.labels import ClassKey
from segwright.data.plan import Plan
from segwright.training.clock import Clock, Timer
from segwright.training.loading.sampling import ClassLocations
from segwright.training.monitoring.logbook import LOG_FILE, Logbook, Metric, row_text, write_line
from segwright.training.monitoring.loggers import METRICS_FILE, JsonlLogger, MetricLogger, SafeLogger
from segwright.training.monitoring.network_plot import plot_network
from segwright.training.monitoring.progress_plot import plot
from segwright.training.monitoring.run_record import debug_document, warn_of_other_threads, write_documents
from segwright.training.monitoring.stagnation import stagnation_warnings
from segwright.training.monitoring.status import State, StatusFile, make_status
from segwright.training.monitoring.trackers import open_loggers, require_loggers

PLOT_INTERVAL_S: Final = 30.0
"""Shortest time between two plots of `progress.png`; one takes about as long as a training step on a CPU."""

NETWORK_PLOT: Final = "network_architecture.png"


class RunOutput:
    """Writes the files of a training and passes its metrics to the loggers.

    Args:
        folder: of the fold.
        is_first: whether this is the first of the processes that share the training; the others write nothing.
        loggers: receive the metrics, in addition to `metrics.jsonl`.
    """

    status: StatusFile
    """Opened by `prepare`."""

    def __init__(self, folder: Path, *, is_first: bool, loggers: Sequence[MetricLogger] = ()) -> None:
        self.loggers: list[MetricLogger] = []
        if is_first:
            self.loggers = [JsonlLogger(folder / METRICS_FILE)]
            self.loggers += (SafeLogger(logger, type(logger).__name__) for logger in loggers)
        self._folder = folder
        self._is_first = is_first

    def move_to(self, folder: Path) -> None:
        """Write into another folder from now on; nothing that was written moves."""
        self._folder = folder
        self.loggers = [
            JsonlLogger(folder / METRICS_FILE) if isinstance(logger, JsonlLogger) else logger for logger in self.loggers
        ]

    def prepare(self, references: Sequence[str], *, now: Callable[[], float] = time.monotonic) -> None:
        """Check that the loggers of the settings are available, and start the timers of status and plots.

        Raises:
            ConfigError: a logger is unknown, or its package is not installed.
        """
        require_loggers(references)
        self.status = StatusFile(self._folder, now=now)
        self._plot_timer = Timer(PLOT_INTERVAL_S, now=now)

    def write_records(
        self,
        plan: Plan,
        description: DatasetDescription,
        record: Mapping[str, Any],
        attributes: Mapping[str, object],
        device: torch.device,
    ) -> None:
        """Remove leftovers of killed runs and write the documents that describe this one.

        Args:
            plan: in force.
            description: of the dataset.
            record: `train_record`.
            attributes: of the trainer, for `debug.json`.
            device: of the training.
        """
        sweep_leftovers(self._folder)
        sweep_leftovers(self._folder.parent, is_shared=True)
        warn_of_other_threads(self._folder, record)
        debug = debug_document({**attributes, "loggers": self.loggers}, device)
        write_documents(self._folder, plan, description, record=record, debug=debug)

    def print_line(self, *parts: object, console: bool, timestamp: bool) -> None:
        """Append a line to `training.log`, see `write_line`."""
        if self._is_first:
            write_line(self._folder / LOG_FILE, *parts, console=console, timestamp=timestamp)

    def open_loggers(self, references: Sequence[str]) -> None:
        """Open the loggers of the settings."""
        self.loggers += open_loggers(references, self._folder)

    def rewind_loggers(self, epoch: int, rows: Sequence[Mapping[str, Metric]]) -> None:
        """Drop logged metrics from `epoch` on, and restore lines of `metrics.jsonl` before it from `rows`."""
        for logger in self.loggers:
            logger.rewind(epoch)
            if isinstance(logger, JsonlLogger):
                logger.complete(rows[:epoch])

    def close_loggers(self) -> None:
        """Close all loggers."""
        for logger in self.loggers:
            logger.close()

    def log_epoch(
        self,
        rows: Sequence[Mapping[str, Metric]],
        epoch: int,
        classes: Mapping[ClassKey, str],
        clock: Clock,
        *,
        forced: float,
        load_locations: Callable[[], Sequence[ClassLocations]],
        log: Callable[[str], None],
    ) -> None:
        """Log the metrics of an epoch, then warnings about classes that are not learned.

        Args:
            rows: metrics of the epochs so far.
            epoch: the one that ended.
            classes: names of the foreground classes or regions, in the order of the pseudo Dice.
            clock: epochs and time of the training.
            forced: share of samples that must show foreground.
            load_locations: returns the voxels of each class for every training case.
            log: writes a line of text.
        """
        names = [*classes.values()]
        log(row_text(rows[epoch], names=names, left_s=clock.left_s(epoch + 1)))
        for logger in self.loggers:
            logger.log(rows[epoch], epoch)
        length = clock.num_epochs
        for line in stagnation_warnings(
            rows, names, [*classes], num_epochs=length, forced=forced, load_locations=load_locations
        ):
            log(line)

    def write_status(
        self,
        state: State,
        clock: Clock,
        logbook: Logbook,
        steps_per_epoch: int,
        *,
        epoch: int,
        epoch_step: int,
        step: int,
    ) -> None:
        """Write `status.json`; the arguments are those of `make_status`."""
        if self._is_first:
            counts = {"epoch": epoch, "epoch_step": epoch_step, "steps_per_epoch": steps_per_epoch, "step": step}
            self.status.write(make_status(state, clock, logbook, **counts))

    def plot_progress(self, logbook: Logbook) -> None:
        """Draw `progress.png`."""
        if self._is_first:
            plot(logbook, self._folder / "progress.png")
        self._plot_timer.reset()

    def plot_progress_if_due(self, logbook: Logbook) -> None:
        """Draw `progress.png` if the last plot is older than `PLOT_INTERVAL_S`."""
        if self._plot_timer.is_due:
            self.plot_progress(logbook)

    def plot_network(
        self, network: nn.Module, num_input_channels: int, patch_size: tuple[int, ...], log: Callable[[str], None]
    ) -> None:
        """Draw the network into `network_architecture.png`; log the reason if it cannot be traced."""
        try:
            plot_network(network, num_input_channels, patch_size, self._folder / NETWORK_PLOT)
        except ModelError as error:
            log(f"{NETWORK_PLOT} is not drawn: {error}")
