"""Logbook, moving average, log lines, metrics file and progress plot of a training."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from PIL import Image

from segwright.training.monitoring.logbook import Logbook, row_text, write_line
from segwright.training.monitoring.loggers import JsonlLogger, read_rows
from segwright.training.monitoring.progress_plot import plot


def filled() -> Logbook:
    book = Logbook()
    for epoch in range(3):
        book.log("epoch_start_timestamps", 10.0 * epoch, epoch)
        book.log("train_losses", 1.0 - epoch, epoch)
        book.log("val_losses", 1.1 - epoch, epoch)
        book.log("dice_per_class_or_region", [0.5, math.nan], epoch)
        book.log("mean_fg_dice", 0.5, epoch)
        book.log("steps", 4, epoch)
        book.log("epoch_end_timestamps", 10.0 * epoch + 8, epoch)
    return book


def test_moving_average_is_the_reference_s() -> None:
    book = Logbook()
    for epoch, dice in enumerate([0.2, 0.4, 0.6]):
        book.log("mean_fg_dice", dice, epoch)
    assert book.column("ema_fg_dice") == pytest.approx([0.2, 0.22, 0.258])


def test_epoch_without_a_dice_does_not_change_the_average() -> None:
    book = Logbook()
    for epoch, dice in enumerate([math.nan, 0.4, math.nan, 0.6]):
        book.log("mean_fg_dice", dice, epoch)
    assert book.column("ema_fg_dice") == [None, 0.4, 0.4, pytest.approx(0.42)]


def test_logbook_survives_json() -> None:
    book = filled()
    assert Logbook(json.loads(json.dumps(book.rows, allow_nan=False))).rows == book.rows


def test_line_of_an_epoch_distinguishes_an_absent_class_from_a_bad_one() -> None:
    text = row_text(filled().rows[1], names=["a", "b"], left_s=95)
    assert "a 0.5000, b absent" in text
    assert "4 steps in 8.0 s" in text
    assert text.endswith("about 1 min 35 s left")


def test_skipped_steps_are_named() -> None:
    assert "2 steps skipped" in row_text({"epoch": 0, "skipped_steps": 2}, names=[], left_s=None)


def test_wait_for_batches_is_in_the_line_of_an_epoch() -> None:
    text = row_text({**filled().rows[0], "loader_wait_s": 0.00123}, names=[], left_s=None)
    assert text.endswith("4 steps in 8.0 s, each waited 1.2 ms for its batch")


def test_lines_go_to_the_file_and_to_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "deep" / "training.log"
    with caplog.at_level(logging.INFO, logger="segwright"):
        write_line(path, "one", 2)
        write_line(path, "quiet", console=False, timestamp=False)
    stamped, bare = path.read_text().splitlines()
    assert stamped.endswith(": one 2")
    assert bare == "quiet"
    assert caplog.messages == ["one 2"]


def test_metrics_of_epochs_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for epoch in range(3):
        logger.log({"train_losses": float(epoch)}, epoch)
    with logger.path.open("a") as stream:
        stream.write('{"epoch": 3, "train_')  # the process was killed here
    logger.rewind(2)
    logger.log({"train_losses": 20.0}, 2)
    rows = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert [(row["epoch"], row["train_losses"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"epoch": "1"}',
        b'{"epoch": 1, "train',
        b'{"epoch": 1, "train_losses": NaN}',
        b"",
    ],
)
def test_a_damaged_line_is_restored_from_the_checkpoint(tmp_path: Path, damage: bytes) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for epoch in range(3):
        logger.log({"train_losses": float(epoch)}, epoch)
    whole = logger.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    logger.path.write_bytes(lines[0] + damage + b"\n" + lines[2])
    assert [row["epoch"] for row in read_rows(logger.path)] == [0, 2]
    logger.rewind(3)
    logger.complete([{"epoch": epoch, "train_losses": float(epoch)} for epoch in range(2)])
    assert logger.path.read_bytes() == whole


def test_rewinding_nothing_is_fine(tmp_path: Path) -> None:
    JsonlLogger(tmp_path / "metrics.jsonl").rewind(0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_progress_is_drawn(tmp_path: Path) -> None:
    plot(filled(), tmp_path / "progress.png")
    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.width > 300
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_progress_without_epochs_is_drawn(tmp_path: Path) -> None:
    plot(Logbook(), tmp_path / "progress.png")
    assert (tmp_path / "progress.png").stat().st_size > 0
