"""The self-test of a convolution and a norm: errors of rounding, wrong results, time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segwright.networks import self_test
from segwright.networks.cpu.library import library
from segwright.networks.self_test import LayerTest, run_layers

CPU = torch.device("cpu")
RIGHT = LayerTest(
    precision="fp32", kernels="torch", size=8, conv_gflops=1.0, conv_error=1e-6, norm_gb_per_s=1.0, norm_error=1e-6
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "SIZES", (8,))


def test_every_precision_is_measured_and_right() -> None:
    found = run_layers(CPU, seconds=0.0)
    compiled = [name for name, fp16 in (("fp32", False), ("fp16", True)) if library(fp16=fp16) is not None]
    expected = [("fp32", "torch"), ("bf16", "torch"), *((name, "compiled") for name in compiled)]
    assert [(layer.precision, layer.kernels) for layer in found] == expected
    assert all(layer.is_right and layer.conv_gflops > 0 and layer.norm_gb_per_s > 0 for layer in found)
    assert found[0].conv_error < 1e-5 < found[1].conv_error


@pytest.mark.parametrize("kind", [nn.Conv3d, nn.InstanceNorm3d])
def test_wrong_results_are_found(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    run = self_test._shortest

    def wrong(layer: nn.Module, *args: Any, **kwargs: Any) -> tuple[float, Tensor]:
        seconds, out = run(layer, *args, **kwargs)
        return seconds, 1.2 * out if isinstance(layer, kind) else out

    monkeypatch.setattr(self_test, "_shortest", wrong)
    assert not any(each.is_right for each in run_layers(CPU, seconds=0.0))


@pytest.mark.parametrize("name", ["conv_error", "norm_error"])
@pytest.mark.parametrize("error", [0.1, float("nan"), float("inf")])
def test_an_error_above_rounding_is_wrong(name: str, error: float) -> None:
    assert RIGHT.is_right
    assert not replace(RIGHT, **{name: error}).is_right  # type: ignore[arg-type]
