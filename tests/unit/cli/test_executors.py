"""The options that choose where the tasks of a run are run, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segwright.cli.executors import gpu_slots
from segwright.cli.main import app
from segwright.core import device
from segwright.core.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dask", "x:1", "--local-cpus", "2"), "--dask and --local-cpus exclude each other; give one of them"),
        (("--local-gpus", "all", "--gpus", "2"), "--local-gpus and --gpus exclude each other"),
        (("--local-cpus", "0"), "invalid value for '--local-cpus'"),
        (("--local-cpus", "2", "--device", "cuda"), "--local-cpus runs tasks on the CPU; leave out --device cuda"),
        (("--local-gpus", "0", "--device", "cpu"), "chooses the GPU of each task; leave out --device cpu"),
        (("--dask", "x:1"), "distributed is not installed"),
        (("--dask", "x:1"), 'pip install "segwright[cluster]"'),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    done = CliRunner().invoke(app, ["--work", str(tmp_path / "work"), "run", str(tmp_path), *options])
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", "0", "--parts", "2", "--local-cpus", "2"), "--local-cpus and --part exclude each other"),
        (("--local-cpus", "2", "--device", "cuda"), "--local-cpus runs tasks on the CPU; leave out --device cuda"),
        (("--local-gpus", "0,1", "--devices", "cuda:0,cuda:1"), "leave out --device cuda:0,cuda:1"),
        (("--dask", "x:1"), 'pip install "segwright[cluster]"'),
    ],
)
def test_options_of_a_prediction_that_do_not_fit_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    places = ("-m", str(tmp_path), "-i", str(tmp_path), "-o", str(tmp_path / "out"))
    done = CliRunner().invoke(app, ["predict", *places, *options])
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_each_process_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "count_gpus", lambda: (4, ""))
    name = "CUDA_VISIBLE_DEVICES"
    assert gpu_slots("all", "auto", {}) == [{name: "0"}, {name: "1"}, {name: "2"}, {name: "3"}]
    assert gpu_slots("0,2,0", "cuda", {name: "4,5,6,7"}) == [{name: "4"}, {name: "6"}]
    with pytest.raises(ConfigError, match=r"--local-gpus 0,4: '4' is not a GPU; this machine has 4, numbered from 0"):
        gpu_slots("0,4", "auto", {})
    with pytest.raises(ConfigError, match=r"--local-gpus first: 'first' is not a GPU"):
        gpu_slots("first", "auto", {})


def test_without_gpus_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "count_gpus", lambda: (0, "torch was built without CUDA"))
    with pytest.raises(ConfigError, match=r"--local-gpus all: torch was built without CUDA; on the CPU use --local-cp"):
        gpu_slots("all", "auto", {})
