"""Loggers of other packages, replaced by small modules; a failing logger never stops a training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from segwright.core.errors import ConfigError
from segwright.training.monitoring.loggers import SafeLogger
from segwright.training.monitoring.trackers import LOGGERS, open_loggers, require_loggers
from tests.unit.training.tiny_task import make, settings

METRICS = {"epoch": 4, "ema_fg_dice": 0.5, "dice_per_class_or_region": [0.25, None, 0.75], "val_losses": None}
FLAT = {
    "epoch": 4,
    "ema_fg_dice": 0.5,
    "dice_per_class_or_region/class_1": 0.25,
    "dice_per_class_or_region/class_3": 0.75,
}


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_mlflow_gets_every_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Run:
        class info:  # noqa: N801
            run_id = "7"

    pretend(
        monkeypatch,
        "mlflow",
        is_tracking_uri_set=lambda: False,
        set_tracking_uri=seen.append,
        start_run=lambda run_name: seen.append(run_name) or Run,
        log_metrics=lambda metrics, step, run_id: seen.append((metrics, step, run_id)),
        end_run=lambda: seen.append("end"),
    )
    require_loggers(["mlflow"])
    [logger] = open_loggers(["mlflow"], tmp_path / "model" / "fold_0")
    logger.rewind(4)
    logger.log(METRICS, 4)
    logger.close()
    place = (tmp_path / "model" / "fold_0" / "mlruns").as_uri()
    assert seen == [place, f"{tmp_path.name}/model/fold_0", (FLAT, 4, "7"), "end"]


def test_wandb_continues_the_run_of_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[dict[str, Any]] = []
    logged: list[Any] = []

    class Run:
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            logged.append((dict(metrics), step))

        def finish(self) -> None:
            logged.append("finish")

    def init(**options: Any) -> Run:
        opened.append(options)
        return Run()

    pretend(monkeypatch, "wandb", init=init)
    for _ in range(2):
        [logger] = open_loggers(["wandb"], tmp_path / "fold_0")
        logger.log(METRICS, 4)
        logger.close()
    assert opened[0] == opened[1]
    assert opened[0]["resume"] == "allow"
    assert logged == [(FLAT, 4), "finish"] * 2


def test_tensorboard_drops_what_is_trained_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            seen.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def flush(self) -> None:
            """Nothing to do."""

        def close(self) -> None:
            seen.append("close")

    pretend(monkeypatch, "torch.utils.tensorboard", SummaryWriter=Writer)
    [logger] = open_loggers(["tensorboard"], tmp_path)
    logger.rewind(4)
    logger.log(METRICS, 4)
    logger.close()
    assert seen == [(str(tmp_path / "tensorboard"), 4), *((name, value, 4) for name, value in FLAT.items()), "close"]


class FailingLogger:
    """Works once."""

    def __init__(self, folder: Path) -> None:
        self.calls = 0

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("the server is gone")

    def close(self) -> None:
        raise AssertionError("a logger that failed is disabled")


def unopenable(folder: Path) -> Any:
    raise ConnectionError("no server")


def test_a_failing_logger_does_not_stop_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loggers = [f"{__name__}:FailingLogger", f"{__name__}:unopenable"]
    trainer = make(tmp_path, config=settings(num_epochs=3, loggers=loggers))
    trainer.run_training()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(" (")[0] for message in warnings] == [
        f"metric logger {loggers[1]} cannot be opened",
        f"metric logger {loggers[0]} failed and is disabled",
    ]
    assert len((trainer.output_folder / "metrics.jsonl").read_text().splitlines()) == 3
    [logger] = [logger for logger in trainer.loggers if isinstance(logger, SafeLogger)]
    assert vars(logger)["_wrapped"].calls == 2


def nothing(folder: Path) -> None:
    """Make no logger."""


def test_what_is_no_logger_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_loggers([f"{__name__}:nothing"], tmp_path) == []
    assert "it made a NoneType without log and close; expected fn(folder) -> logger" in caplog.text
    without_close = SafeLogger(type("Half", (), {"log": lambda *arguments: None})(), "half")  # given to the constructor
    without_close.close()
    assert "metric logger half failed and is disabled" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "did you mean 'tensorboard'"), (f"{__name__}:METRICS", "cannot be called")],
)
def test_an_unusable_logger_is_refused_before_the_training(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, config=settings(loggers=name)).initialize()


@pytest.mark.parametrize("name", LOGGERS.names())
def test_a_package_that_is_missing_is_named(name: str) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=f"metric logger '{name}' needs the package {name}; install it"):
        require_loggers([name])
