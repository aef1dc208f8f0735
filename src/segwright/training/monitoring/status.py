"""`status.json`: how far a training is, for people who look from another shell; and the file by which they end it."""

from __future__ import annotations

import platform
import time
from logging import getLogger
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

from segwright.core.errors import WorkspaceError
from segwright.core.files.atomic_io import write_json
from segwright.training.optim.schedule import Timer

if TYPE_CHECKING:
    from segwright.training.trainer import Trainer

logger = getLogger(__name__)

STATUS_JSON: Final = "status.json"
STOP_FILE: Final = "stop"
"""A file of this name in the fold's folder ends the training after the step, as if that were its last."""

INTERVAL_S: Final = 5.0
LOOK_INTERVAL_S: Final = 0.5
SCHEMA_VERSION: Final = 1

State = Literal["training", "interrupted", "validating", "finished"]


class Status(BaseModel):
    """One moment of a training; times in seconds, `updated` since 1970."""

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
    """Writes the status now and then, and looks for the stop file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATUS_JSON
        self._stop_file = folder / STOP_FILE
        self._timer = Timer(INTERVAL_S)
        self._look_timer = Timer(LOOK_INTERVAL_S)

    def beat(self, trainer: Trainer) -> None:
        """Write the status if the last one is old."""
        if self._timer.is_due:
            self.write(trainer, "training")

    def write(self, trainer: Trainer, state: State) -> None:
        """Write the status; a full disk or a lost mount must not end the training here."""
        try:
            write_json(self.path, status_of(trainer, state).model_dump(mode="json"))
        except (OSError, WorkspaceError) as error:
            logger.warning("%s: cannot be written (%s)", self.path, error)
        if state == "finished":
            self._stop_file.unlink(missing_ok=True)  # it has had its effect
        self._timer.reset()

    @property
    def asks_to_end(self) -> bool:
        """Whether somebody has put the stop file there; looks twice a second at most."""
        if not self._look_timer.is_due:
            return False
        self._look_timer.reset()
        return self._stop_file.exists()


def status_of(trainer: Trainer, state: State) -> Status:
    """Return where a trainer stands."""
    clock, book = trainer.clock, trainer.logbook
    losses = [value for value in book.column("train_losses") if isinstance(value, float)]
    ema = next((value for value in reversed(book.column("ema_fg_dice")) if isinstance(value, float)), None)
    epochs = trainer.current_epoch + trainer.epoch_step / trainer.num_iterations_per_epoch
    return Status(
        state=state,
        epoch=trainer.current_epoch,
        num_epochs=clock.num_epochs,
        epoch_step=trainer.epoch_step,
        steps_per_epoch=trainer.num_iterations_per_epoch,
        step=trainer.current_step,
        elapsed_s=clock.elapsed_s,
        left_s=clock.left_s(epochs) if epochs else None,
        budget_s=clock.budget_s,
        train_loss=losses[-1] if losses else None,
        ema_fg_dice=ema,
        host=platform.node(),
        process=getpid(),
        updated=time.time(),
    )
