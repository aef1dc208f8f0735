"""Report the progress of a training to other programs (`status.json`), and end it early on request (file `stop`)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from logging import getLogger
from os import getpid
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from segwright.core.errors import WorkspaceError
from segwright.core.files.json_documents import write_json
from segwright.training.clock import Clock, Timer
from segwright.training.monitoring.logbook import Logbook

logger = getLogger(__name__)

STATUS_JSON: Final = "status.json"
STOP_FILE: Final = "stop"
"""A file of this name in the fold's folder ends the training normally after the current step."""

INTERVAL_S: Final = 5.0
STOP_INTERVAL_S: Final = 0.5
SCHEMA_VERSION: Final = 1

State = Literal["training", "interrupted", "validating", "finished"]


class Status(BaseModel):
    """Progress of a training at one moment.

    Attributes:
        state: what the training is doing.
        epoch: number of finished epochs.
        num_epochs: length of the training; None if only a time budget limits it.
        epoch_step: finished steps of the current epoch.
        steps_per_epoch: steps of an epoch; with a time budget an epoch may have fewer.
        step: finished steps since the start.
        elapsed_s: seconds of training so far.
        left_s: estimated seconds until its end; None at the start.
        budget_s: its time budget in seconds; None without.
        train_loss: loss of the last epoch; None before the first has ended.
        ema_fg_dice: exponential average of the pseudo Dice of the foreground; None before the first validation.
        host: name of the machine.
        process: number of the process.
        updated: Unix time of this record.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    state: State
    epoch: int
    num_epochs: int | None
    epoch_step: int
    steps_per_epoch: int
    step: int
    elapsed_s: float
    left_s: float | None
    budget_s: float | None
    train_loss: float | None
    ema_fg_dice: float | None
    host: str
    process: int
    updated: float


class StatusFile:
    """Writes `status.json` at intervals and checks for the stop file."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self.path = folder / STATUS_JSON
        self._stop_file = folder / STOP_FILE
        self._timer = Timer(INTERVAL_S, now=now)
        self._stop_timer = Timer(STOP_INTERVAL_S, now=now)

    @property
    def is_due(self) -> bool:
        """Whether the last status is older than `INTERVAL_S`."""
        return self._timer.is_due

    def write(self, status: Status) -> None:
        """Write the status; log a failure, since a full disk or a lost mount must not end the training."""
        try:
            write_json(self.path, status.model_dump(mode="json"))
        except (OSError, WorkspaceError) as error:
            logger.warning("%s: cannot be written (%s)", self.path, error)
        if status.state == "finished":
            self._stop_file.unlink(missing_ok=True)  # the request is fulfilled
        self._timer.reset()

    @property
    def stop_is_requested(self) -> bool:
        """Whether the stop file exists; checked at most once in `STOP_INTERVAL_S`, and False in between."""
        if not self._stop_timer.is_due:
            return False
        self._stop_timer.reset()
        return self._stop_file.exists()


def make_status(
    state: State, clock: Clock, logbook: Logbook, *, epoch: int, epoch_step: int, steps_per_epoch: int, step: int
) -> Status:
    """Return the status of a training.

    Args:
        state: current phase of the training.
        clock: epochs and time of the training.
        logbook: metrics so far.
        epoch: the current one.
        epoch_step: steps of that epoch that are done.
        steps_per_epoch: training steps of an epoch.
        step: training steps since the start.
    """
    losses = [value for value in logbook.column("train_losses") if isinstance(value, float)]
    ema = next((value for value in reversed(logbook.column("ema_fg_dice")) if isinstance(value, float)), None)
    epochs = epoch + epoch_step / steps_per_epoch
    return Status(
        state=state,
        epoch=epoch,
        num_epochs=clock.num_epochs,
        epoch_step=epoch_step,
        steps_per_epoch=steps_per_epoch,
        step=step,
        elapsed_s=clock.elapsed_s,
        left_s=clock.left_s(epochs) if epochs else None,
        budget_s=clock.budget_s,
        train_loss=losses[-1] if losses else None,
        ema_fg_dice=ema,
        host=platform.node(),
        process=getpid(),
        updated=time.time(),
    )
