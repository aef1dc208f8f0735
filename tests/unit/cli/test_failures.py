"""How the program fails: one line, the right exit code, the nearest name."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from segwright import api
from segwright.cli.main import app
from segwright.core.errors import DatasetError, Problem, ProblemReport

VERBS = ["run", "check", "fingerprint", "plan", "preprocess", "train", "predict", "evaluate", "demo"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_an_unknown_command_names_the_nearest() -> None:
    result = call("trian")
    assert result.exit_code == 1
    assert "no such command 'trian'; did you mean 'train'?" in result.stderr


def test_an_unknown_option_names_the_nearest() -> None:
    result = call("train", "x", "--config", "2d", "--fold", "0", "--epoch", "3")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no such option '--epoch'; did you mean '--epochs'?")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "missing argument"),
        (["train", "x", "--fold", "0"], "missing option '--config'"),
        (["train", "x", "--config", "2d", "--fold", "first"], "'first' is not a fold"),
        (["train", "x", "--config", "2d", "--fold", "0", "--epochs", "0"], "invalid value for '--epochs'"),
        (["run", "x", "--budget", "soon"], "write for instance 90s, 10m or 1h30m"),
        (["run", "no-such-dataset"], "'no-such-dataset' is neither a folder nor a name or id"),
        (["plan"], "give either DATASET, or --from-fingerprint FILE together with --dataset-json FILE"),
        (["predict", "-m", "m", "-i", "i", "-o", "o", "--probabilities", "png"], "'png' is not a format; choose npz"),
        (["train", "x", "--config", "2d", "--fold", "0", "--network-arg", "width"], "is not KEY=VALUE"),
        (["train", "x", "--config", "2d", "--fold", "0", "--set", "loss"], "is not KEY=VALUE"),
        (["train", "x", "--config", "2d", "--fold", "0", "--set", "los=ce"], "'los'; did you mean 'loss'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_1(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def _failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *more: str) -> Result:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "run", fail)
    return call("run", "x", *more)


def test_every_line_of_a_user_error_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ProblemReport([Problem(where="a", what="one"), Problem(where="b", what="two")])
    result = _failing_with(monkeypatch, report)
    assert (result.exit_code, result.stderr) == (1, "error: a: one\nerror: b: two\n")


def test_our_own_fault_is_exit_code_2_and_shows_a_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    short = _failing_with(monkeypatch, RuntimeError("broken"))
    assert short.exit_code == 2
    assert "unexpected RuntimeError: broken" in short.stderr
    assert "Traceback" not in short.stderr
    assert "Traceback" in _failing_with(monkeypatch, RuntimeError("broken"), "--debug").stderr


def test_a_full_disk_is_not_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _failing_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/work/file"))
    assert result.exit_code == 1
    assert "/work/file: no space left on the disk" in result.stderr


def test_training_options_reach_the_api_and_unset_ones_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    def record(dataset: str, **given: object) -> None:
        seen.update(given, dataset=dataset)
        raise DatasetError("enough")

    monkeypatch.setattr(api, "train", record)
    monkeypatch.chdir(tmp_path)
    numbers = ["--epochs", "3", "--iterations", "7", "--batch-size", "4", "--seed", "9"]
    more = ["--network", "residual-unet", "--network-arg", "width=48", "--resume", "--budget", "10m"]
    call("train", "4", "--config", "2d", "--fold", "all", *numbers, *more)
    assert seen["settings"] == {"num_epochs": 3, "num_iterations_per_epoch": 7, "batch_size": 4, "seed": 9}
    assert (seen["fold"], seen["network"], seen["network_kwargs"]) == ("all", "residual-unet", {"width": 48})
    assert (seen["resume"], seen["budget"], seen["configuration"]) == (True, "10m", "2d")
    call("train", "4", "--config", "2d", "--fold", "0")
    assert seen["settings"] == {}
    values = ["--set", "loss=topk10", "--set", "class_weights=[1, 2]", "--set", "num_epochs=3", "--epochs", "4"]
    call("train", "4", "--config", "2d", "--fold", "0", *values)
    assert seen["settings"] == {"loss": "topk10", "class_weights": [1, 2], "num_epochs": 4}


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _failing_with(monkeypatch, KeyboardInterrupt()).exit_code == 130


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    program = (
        "import sys\n"
        "from segwright.cli.main import main\n"
        f"sys.argv = ['segwright', *{verb.split()!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert leaving.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'segwright.api'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: segwright" in done.stdout


def test_help_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("segwright"), "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.3


def test_importing_the_package_imports_no_torch() -> None:
    program = "import segwright, sys; segwright.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
