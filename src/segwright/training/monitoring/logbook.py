"""Metrics of each epoch, with the moving average of the pseudo Dice, and the text log of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright.core.files.atomic_io import append_text
from segwright.core.text import printable

logger = getLogger(__name__)

LOG_FILE: Final = "training.log"

EMA_DECAY = 0.9
"""Weight of the past in the moving average of the pseudo Dice (nnU-Net behaviour 8.3)."""

Metric = float | int | list[float | None] | None
"""None: could not be computed, e.g. the Dice of a class that did not occur."""


class Logbook:
    """Metrics by epoch under nnU-Net's names; logging `mean_fg_dice` also sets `ema_fg_dice`.

    >>> book = Logbook()
    >>> book.log("mean_fg_dice", 0.5, 0); book.log("mean_fg_dice", float("nan"), 1); book.log("mean_fg_dice", 1.0, 2)
    >>> book.column("ema_fg_dice")
    [0.5, 0.5, 0.55]
    """

    def __init__(self, rows: Sequence[Mapping[str, Metric]] = ()) -> None:
        self.rows: list[dict[str, Metric]] = [dict(row) for row in rows]

    def log(self, key: str, value: float | Sequence[float], epoch: int) -> None:
        """Set one metric of an epoch; NaN and infinite values are kept as None."""
        while len(self.rows) <= epoch:
            self.rows.append({"epoch": len(self.rows)})
        self.rows[epoch][key] = [_finite(part) for part in value] if isinstance(value, Sequence) else _finite(value)
        if key == "mean_fg_dice":
            self.rows[epoch]["ema_fg_dice"] = self._moving_average(epoch)

    def value(self, key: str, epoch: int = -1) -> Metric:
        """Return one metric of an epoch, the latest by default."""
        return self.rows[epoch].get(key) if self.rows else None

    def column(self, key: str) -> list[Metric]:
        """Return one metric over all epochs."""
        return [row.get(key) for row in self.rows]

    def _moving_average(self, epoch: int) -> Metric:
        """Return the average up to `epoch`; an epoch without a Dice leaves it as it was (nnU-Net behaviour 8.3)."""
        before = self.rows[epoch - 1].get("ema_fg_dice") if epoch else None
        value = self.rows[epoch].get("mean_fg_dice")
        if not isinstance(value, float) or not isinstance(before, float):
            return value if isinstance(value, float) else before
        return EMA_DECAY * before + (1 - EMA_DECAY) * value


def write_line(path: Path, *parts: object, console: bool = True, timestamp: bool = True) -> None:
    """Append a line to a text log and pass it to `logging`.

    The file is opened for each line, so that it is complete whenever the process ends.
    """
    text = " ".join(str(part) for part in parts)
    prefix = f"{datetime.now().isoformat(sep=' ', timespec='seconds')}: " if timestamp else ""
    lines = "\n".join(map(printable, text.split("\n")))
    append_text(path, f"{prefix}{lines}\n")
    if console:
        logger.info("%s", text)


def row_text(row: Mapping[str, Metric], *, names: Sequence[str], left_s: float | None) -> str:
    """Return an epoch's metrics as one line.

    Args:
        row: the epoch's metrics.
        names: of the foreground classes, in the order of `dice_per_class_or_region`.
        left_s: seconds until the training ends, None if unknown.
    """
    per_class, voxels = row.get("dice_per_class_or_region"), row.get("true_voxels_per_class")
    shown = per_class if isinstance(per_class, list) else []
    counts = voxels if isinstance(voxels, list) else [None] * len(shown)
    dices = ", ".join(
        f"{printable(name)} {_number(value)}{' (absent, but predicted)' if value is not None and count == 0 else ''}"
        for name, value, count in zip(names, shown, counts, strict=False)
    )
    text = (
        f"epoch {row.get('epoch')}: train loss {_number(row.get('train_losses'))}, "
        f"val loss {_number(row.get('val_losses'))}, pseudo Dice {dices}, EMA {_number(row.get('ema_fg_dice'))}, "
        f"{row.get('steps')} steps in {_duration(row)}"
    )
    wait = row.get("loader_wait_s")
    if isinstance(wait, float):
        text += f", each waited {1000 * wait:.1f} ms for its batch"
    skipped = row.get("skipped_steps")
    if skipped:
        text += f", {skipped} steps skipped (loss or gradient not finite)"
    return text if left_s is None else f"{text}, about {duration_text(left_s)} left"


def duration_text(seconds: float) -> str:
    """Return a duration as text.

    >>> duration_text(42.4), duration_text(605), duration_text(7300)
    ('42 s', '10 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _finite(value: float) -> float | int | None:
    return value if math.isfinite(value) else None


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "absent"


def _duration(row: Mapping[str, Metric]) -> str:
    begin, end = row.get("epoch_start_timestamps"), row.get("epoch_end_timestamps")
    return f"{end - begin:.1f} s" if isinstance(begin, float) and isinstance(end, float) else "unknown time"
