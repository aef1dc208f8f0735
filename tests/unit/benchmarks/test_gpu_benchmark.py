"""The GPU benchmark without a GPU: time limit, modes, peaks, ratios, its error; slow: all of it with tiny shapes."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import command
from benchmarks.gpu.measure import training_flops
from benchmarks.gpu.modes import MODES, Mode, settings_of, why_not_available
from benchmarks.gpu.peaks import dense_peak
from benchmarks.gpu.schedule import OVERTIME, Figures, Item, MeasurementError, run_items, run_program
from benchmarks.gpu.tasks import TASKS
from segwright.core.errors import ConfigError


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_what_does_not_fit_into_the_time_is_skipped_and_the_rest_goes_on() -> None:
    clock, ends = [1000.0], []

    def measure(end: float) -> Figures:
        ends.append(end)
        clock[0] += 40
        return {"step_ms": 1.0}

    def fail(end: float) -> Figures:
        raise MeasurementError("no memory")

    items = [
        Item(name="first", estimate_s=50, measure=measure),
        Item(name="failing", estimate_s=1, measure=fail),
        Item(name="long", estimate_s=70, measure=measure),
        Item(name="unknown", estimate_s=1, measure=measure, not_available="not in this version"),
        Item(name="short", estimate_s=10, measure=measure),
        Item(name="late", estimate_s=30, measure=measure),
    ]
    results = list(run_items(items, end=1100, now=lambda: clock[0]))
    assert [result["status"] for result in results] == [
        "measured", "failed", "skipped", "not available", "measured", "skipped"
    ]  # fmt: skip
    assert ends == [1100, 1040 + 10 * OVERTIME]
    assert results[0] == {"name": "first", "status": "measured", "step_ms": 1.0, "took_s": 40}
    assert results[2]["reason"] == "it takes about 70 s, and 60 s are left"
    assert [results[index]["reason"] for index in (1, 3)] == ["no memory", "not in this version"]


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    child = (
        f"import signal; pipe = open({str(tmp_path / 'pipe')!r}, 'w'); pipe.write('x'); pipe.flush(); signal.pause()"
    )
    with pytest.raises(MeasurementError, match="stopped after 1 s"):
        run_program(python(f"import subprocess; subprocess.run({python(child)!r})"), end=time.monotonic() + 1.02)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.poll(10_000)
    assert os.read(reading, 10) == b"x"
    poll.poll(10_000)  # until no process has the pipe open
    assert os.read(reading, 10) == b""
    os.close(reading)


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(MeasurementError, match="exit code 3: the reason"):
        run_program(python("import sys; print('the reason', file=sys.stderr); sys.exit(3)"), end=time.monotonic() + 60)


def test_a_mode_that_this_version_does_not_know_is_not_available() -> None:
    unknown = Mode(settings={"no_such_setting": "on"})
    assert "no_such_setting" in why_not_available(unknown, "cuda")
    assert why_not_available(Mode(settings={"num_epochs": -1}), "cuda")
    assert why_not_available(unknown, "cpu") == "needs a CUDA GPU"
    with pytest.raises(ConfigError, match="no_such_setting"):
        settings_of(unknown)


def test_settings_that_only_switch_others_off_may_be_unknown() -> None:
    mode = Mode(settings={"seed": 1}, others={"no_such_setting": "off", "precision": "fp32"})
    assert settings_of(mode) == {"seed": 1, "precision": "fp32"}
    assert why_not_available(MODES["eager"], "cpu") == why_not_available(MODES["default"], "cuda") == ""


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GH200 480GB", None),
        ("Some GPU", None),
    ],
)
def test_peaks_are_found_by_the_name_of_the_gpu(name: str, tflops: float | None) -> None:
    found = dense_peak(name)
    assert (None if found is None else found[0]) == tflops


def test_operations_of_a_convolution_are_counted() -> None:
    network = torch.nn.Conv3d(2, 5, 3, padding=1)
    forward = 2 * 2 * 5 * 27 * 8**3 * 3
    assert training_flops(network, (3, 2, 8, 8, 8)) == 2 * forward  # the image needs no gradient


def test_plans_have_the_stated_patches_and_batches() -> None:
    planned = {name: task.plan(small=False).configuration(task.configuration) for name, task in TASKS.items()}
    assert {name: (each.patch_size, each.batch_size) for name, each in planned.items()} == {
        "hippocampus": ((40, 56, 40), 9),
        "plain-128": ((128, 128, 128), 2),
        "resenc-m": ((128, 128, 128), 2),
        "2d": ((512, 512), 12),
    }
    tiny = [task.plan(small=True).configuration(task.configuration) for task in TASKS.values()]
    assert all(max(each.patch_size) <= 40 and each.batch_size == 2 for each in tiny)


def test_ratios_compare_with_what_a_training_does_by_itself() -> None:
    results = [
        {"name": "step/2d/eager", "step_ms": 3.0},
        {"name": "step/2d/default", "step_ms": 2.0},
        {"name": "nnunet-step/2d", "step_ms": 8.0},
        {"name": "nnunet-step/plain-128", "step_ms": 8.0},
        {"name": "predict/ct", "seconds": 5.0},
        {"name": "nnunet-predict/ct", "seconds": 15.0},
    ]
    assert command.ratios(results) == {"step/2d": 4.0, "predict/ct": 3.0}


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--device", "cuda:99"], "device 'cuda:99'"), (["--device", "cpu"], "add --small")]
)
def test_without_a_gpu_it_says_so(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_tiny_shapes_run_the_same_code_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "gpu.json"
    assert command.main(["--device", "cpu", "--small", "-o", str(output)]) == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    results = {item["name"]: item for item in document["items"]}
    assert {item["status"] for item in results.values()} == {"measured", "not available"}
    measured = {name for name, item in results.items() if item["status"] == "measured"}
    assert measured >= {f"step/{task}/eager" for task in TASKS} | {
        "loader/hippocampus/ram",
        "predict/20-cases",
        "predict/ct",
    }
    step = results["step/hippocampus/eager"]
    assert step["step_ms"] > 0
    assert step["counted_tflop"] > 0
    assert step["share_of_peak"] is None
    assert step["peak_mib"] is None
    assert results["loader/hippocampus/ram"]["loader_wait_ms"] >= 0
    assert results["predict/20-cases"]["cases"] == 2
    assert results["predict/ct"]["seconds"] > 0
    assert results["step/2d/compiled"]["reason"] == "needs a CUDA GPU"
    assert str(output) in capsys.readouterr().out
