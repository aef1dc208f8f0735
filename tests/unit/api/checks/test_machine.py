"""What `doctor` finds: this machine, combinations that are known to be slow or wrong, and shortages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segwright.api.checks import machine
from segwright.api.checks.machine import doctor, known_problems
from segwright.networks.self_test import LayerTest
from segwright.workspace import Workspace

FP32 = LayerTest(
    precision="fp32", kernels="torch", size=8, conv_gflops=10.0, conv_error=1e-6, norm_gb_per_s=1.0, norm_error=1e-6
)


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = doctor("cpu", workspace=Workspace.under(tmp_path / "work"), test_layers=False)
    assert found.versions["torch"] == torch.__version__
    assert (found.device, found.versions["cudnn"], found.layers, found.device_memory_bytes) == ("cpu", None, (), 0)
    assert found.layouts == {"2d": "channels_last", "3d": "channels_last_3d"}
    assert {found.training_precision, found.prediction_precision} <= {"fp32", "bf16", "fp16"}
    assert str(tmp_path / "work" / "results") in found.disks
    assert min(found.memory_bytes, *found.disks.values(), found.cpus, found.torch_threads) > 0


@pytest.mark.parametrize(
    ("device", "version", "cudnn", "expected"),
    [
        ("cuda", "2.9.1+cu128", 91002, ["issue 166122", "cuDNN 9.10 may"]),
        ("cuda", "2.10.0", 90799, []),
        ("cuda", "2.10.0", 90800, ["cuDNN 9.8 may"]),
        ("cuda", "2.10.0", 91400, ["cuDNN 9.14 may"]),
        ("cuda", "2.10.0", 91500, []),
        ("cpu", "2.9.0", None, []),
        ("mps", "2.8.0", None, ["lacks 3D operations"]),
        ("mps", "2.9.0", None, []),
    ],
)
def test_known_problems_are_named(device: str, version: str, cudnn: int | None, expected: list[str]) -> None:
    found = known_problems(torch.device(device), version, cudnn)
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


def test_shortages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert [*machine._shortages(2**40, {"/work": 2**40}, 4, 4)] == []
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    memory, disk, threads, load = machine._shortages(2**30, {"/work": 2**30}, 2, 8)
    assert "only 1.0 GiB of memory" in memory
    assert "only 1.0 GiB are free on the disk of /work" in disk
    assert "8 threads on 2 CPUs; set OMP_NUM_THREADS=2" in threads
    assert "other programs use the CPUs" in load


def test_a_driver_without_cuda_and_missing_kernels_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_NVIDIA_DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(machine, "libraries", tuple)
    driver, kernels = machine._missing_parts(torch.device("cpu"), "none could be loaded")
    assert "install a CUDA build of torch" in driver
    assert "without compiled kernels: none could be loaded" in kernels
    monkeypatch.setattr(machine, "_NVIDIA_DRIVER", tmp_path / "none")
    monkeypatch.setattr(machine, "libraries", lambda: (object(),))
    assert [*machine._missing_parts(torch.device("cpu"), "")] == []


def test_wrong_results_and_a_slow_default_are_named() -> None:
    bf16 = replace(FP32, precision="bf16", conv_gflops=13.0)
    assert [*machine._wrong_or_slow([FP32, bf16], "bf16")] == []
    assert [*machine._wrong_or_slow([], "fp32")] == []
    (slow,) = machine._wrong_or_slow([FP32, bf16], "fp32")
    assert "bf16 convolutions are faster here than in fp32, the default; try --set precision=bf16" in slow
    (wrong,) = machine._wrong_or_slow([FP32, replace(bf16, norm_error=1.0)], "fp32")
    assert "bf16 (torch kernels) gives wrong results: an error of 1 of the deviation" in wrong


def test_what_torch_compile_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine._missing_for_compile(torch.device("cpu")) == "no C++ compiler was found"
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/c++")
    assert machine._missing_for_compile(torch.device("cpu")) == ""
    for found, expected in ((True, ""), (False, "Triton is not installed, or does not support this GPU")):
        monkeypatch.setattr(machine, "can_compile", lambda device, found=found: found)
        assert machine._missing_for_compile(torch.device("cuda")) == expected
