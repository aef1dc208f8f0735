"""Plot the curves of a training as `progress.png`: losses, pseudo Dice, epoch duration, learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from segwright.core.drawing import figure_file
from segwright.training.monitoring.logbook import Logbook, Metric

_SIZE_INCHES = (9.0, 12.0)
_DPI = 80


def plot(logbook: Logbook, path: Path) -> None:
    """Draw the curves of a training."""
    with figure_file(path, size_inches=_SIZE_INCHES, dpi=_DPI) as figure:
        curves, duration, rate = figure.subplots(3, 1, sharex=True)
        _draw_losses_and_dice(curves, logbook)
        duration.plot(
            _series(logbook.column("epoch_end_timestamps")) - _series(logbook.column("epoch_start_timestamps"))
        )
        duration.set_ylabel("epoch duration [s]")
        duration.set_ylim(bottom=0)
        rate.plot(_series(logbook.column("lrs")))
        rate.set_ylabel("learning rate")
        rate.set_xlabel("epoch")


def _draw_losses_and_dice(axes: Axes, logbook: Logbook) -> None:
    axes.plot(_series(logbook.column("train_losses")), color="tab:blue", label="training loss")
    axes.plot(_series(logbook.column("val_losses")), color="tab:red", label="validation loss")
    axes.set_ylabel("loss")
    dice = axes.twinx()
    dice.plot(_series(logbook.column("mean_fg_dice")), color="tab:green", linestyle=":", label="pseudo Dice")
    dice.plot(_series(logbook.column("ema_fg_dice")), color="tab:green", label="pseudo Dice, moving average")
    dice.set_ylabel("pseudo Dice")
    dice.set_ylim(0, 1)
    handles = [handle for part in (axes, dice) for handle in part.get_lines()]
    axes.legend(handles=handles, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.15))


def _series(column: list[Metric]) -> npt.NDArray[np.float64]:
    return np.array([value if isinstance(value, float | int) else np.nan for value in column], dtype=np.float64)
