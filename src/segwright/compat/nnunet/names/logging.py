"""The logger of a trainer, with nnU-Net's interfaces of 2023 (`nnUNetLogger`) and 2026 (`MetaLogger`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from segwright.core.errors import ConfigError, did_you_mean
from segwright.training.monitoring.logbook import EMA_DECAY, Logbook
from segwright.training.monitoring.progress_plot import plot

PLOT_FILE: Final = "progress.png"

KEYS: Final = (
    "mean_fg_dice",
    "ema_fg_dice",
    "dice_per_class_or_region",
    "train_losses",
    "val_losses",
    "lrs",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
)
"""The metrics of an epoch (nnU-Net behaviour 8.3)."""


class nnUNetLogger:
    """Metrics by key, one entry for each epoch; logging `mean_fg_dice` also sets `ema_fg_dice`.

    Attributes:
        my_fantastic_logging: key to list; a file adds an empty list to log a key of its own.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.my_fantastic_logging: dict[str, list[Any]] = {key: [] for key in KEYS}
        self.verbose = verbose

    @property
    def local_logger(self) -> nnUNetLogger:
        """The logger that keeps the lists, as in nnU-Net 2.7: this one."""
        return self

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Set the value of a key in an epoch, which is the latest or the next one.

        Raises:
            ConfigError: an unknown key, or an epoch was left out.
        """
        values = self._list(key)
        if not len(values) - 1 <= epoch <= len(values):
            raise ConfigError(
                f"logger.log('{key}', ..., {epoch}): the list has {len(values)} entries; expected one for each epoch"
            )
        values[epoch:] = [value]
        if key == "mean_fg_dice":
            self.log("ema_fg_dice", self._moving_average(value, epoch), epoch)

    def get_value(self, key: str, step: int | None = None) -> Any:
        """Return the value of an epoch (-1: the latest), or the list of all if `step` is None."""
        return self._list(key) if step is None else self._list(key)[step]

    def log_summary(self, key: str, value: Any) -> None:
        """Do nothing: nnU-Net passes results of the whole training to other loggers alone."""

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing: nnU-Net passes settings to other loggers alone."""

    def plot_progress_png(self, output_folder: str | Path) -> None:
        """Draw the curves to `progress.png`."""
        plot(self.to_logbook(), Path(output_folder) / PLOT_FILE)

    def get_checkpoint(self) -> dict[str, list[Any]]:
        """Return the lists by key."""
        return self.my_fantastic_logging

    def load_checkpoint(self, checkpoint: Mapping[str, list[Any]]) -> None:
        """Set the lists by key."""
        self.my_fantastic_logging = {**{key: [] for key in KEYS}, **checkpoint}

    def to_logbook(self) -> Logbook:
        """Return the metrics as rows of epochs; what is not a number or a list of numbers is left out."""
        book = Logbook()
        for key, values in self.my_fantastic_logging.items():
            for epoch, value in enumerate(values):
                number = _to_metric(value)
                if number is not None:
                    book.log(key, number, epoch)
        return book

    def _list(self, key: str) -> list[Any]:
        if key not in self.my_fantastic_logging:
            raise ConfigError(
                f"logger has no key '{key}'{did_you_mean(key, self.my_fantastic_logging)}; to log another one, first "
                f"set logger.my_fantastic_logging['{key}'] = []"
            )
        return self.my_fantastic_logging[key]

    def _moving_average(self, value: float, epoch: int) -> float:
        """Return the average up to `epoch`; NaN leaves it as it was, as in our own trainer."""
        before = self.my_fantastic_logging["ema_fg_dice"][epoch - 1] if epoch else math.nan
        if math.isnan(value) or math.isnan(before):
            return float(before if math.isnan(value) else value)
        return float(EMA_DECAY * before + (1 - EMA_DECAY) * value)


class MetaLogger(nnUNetLogger):
    """nnU-Net's logger of 2026.

    Args:
        output_folder: of the fold.
        resume: whether a training is continued.
        verbose: as of `nnUNetLogger`.
    """

    def __init__(self, output_folder: str | Path, resume: bool = False, verbose: bool = False) -> None:
        super().__init__(verbose)
        self.output_folder = str(output_folder)
        self.resume = resume


LocalLogger = nnUNetLogger
"""Its name in nnU-Net 2.7."""


def _to_metric(value: Any) -> float | Sequence[float] | None:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, int | float):
        return value
    is_list = isinstance(value, list | tuple) and all(isinstance(part, int | float | np.number) for part in value)
    return [float(part) for part in value] if is_list else None
