"""What precisions mean on a device."""

from __future__ import annotations

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.inference import precision
from segwright.inference.window.sliding import Window

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "kernels", "has_amx", "used"),
    [
        ("auto", {False}, False, "fp32"),
        ("auto", {False, True}, False, "fp16"),
        ("auto", {False, True}, True, "bf16"),
        ("auto", {False}, True, "bf16"),
        ("auto", set(), False, "bf16"),
        ("fp16", {False, True}, True, "fp16"),
        ("fp32", {False, True}, False, "fp32"),
        ("bf16", {False, True}, False, "bf16"),
    ],
)
def test_a_processor_uses_what_it_is_fast_at(
    asked: str, kernels: set[bool], has_amx: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def library(*, fp16: bool = False) -> str | None:
        return "kernels" if fp16 in kernels else None

    def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
        return torch.float32 if precision == "fp32" else torch.bfloat16

    monkeypatch.setattr(precision, "library", library)
    monkeypatch.setattr(precision, "has_amx", lambda: has_amx)
    monkeypatch.setattr(precision, "compute_dtype", compute_dtype)
    assert precision.used_precision(CPU, asked) == used
    window = Window(patch_size=(8, 8, 8), device=CPU, precision=asked)
    assert window.used_precision == used
    assert window.cpu_kernels.fp16 == (used == "fp16")


def test_float16_is_refused_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "library", lambda fp16=False: None if fp16 else "kernels")
    with pytest.raises(ConfigError, match="precision 'fp16' needs a GPU; choose auto, bf16 or fp32"):
        precision.used_precision(CPU, "fp16")


def test_a_gpu_computes_in_float16_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "library", lambda fp16=False: "kernels")
    assert precision.used_precision(torch.device("cuda"), "fp16") == "fp16"
    assert not Window(patch_size=(8, 8), device=torch.device("cuda"), precision="fp16").cpu_kernels.fp16
