"""Compiled steps on the CPU: torch's own compiler gives the plain losses, for our networks and for others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segwright.training.execution import choice
from segwright.training.execution.choice import COMPILED, PLAIN, PLAIN_STEPS
from segwright.training.execution.compiled import compile_loss
from segwright.training.execution.step import StepParts, StepSettings
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import DATASET_JSON, REGIONS_JSON, make, settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++"),
    pytest.mark.filterwarnings("default"),  # those of the compiler
]


@pytest.fixture(autouse=True)
def _no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiled steps count as fast as plain ones, so that they are kept."""
    monkeypatch.setattr(choice.Trial, "median_s", 1.0)


def convolution(dims: int) -> Any:
    return {2: nn.Conv2d, 3: nn.Conv3d}[dims]


class ResidualUnit(nn.Module):
    """As in MONAI: convolution, instance norm, dropout and PReLU, and a convolution around them."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims]
        self.convolution = convolution(dims)(inputs, outputs, 3, stride, 1)
        self.rest = nn.Sequential(norm(outputs), nn.Dropout(0.1), nn.PReLU())
        self.residual = convolution(dims)(inputs, outputs, 3, stride, 1)

    def forward(self, data: Tensor) -> Tensor:
        return self.residual(data) + self.rest(self.convolution(data))


class SkipConnection(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, data: Tensor) -> Tensor:
        return torch.cat([data, self.inner(data)], dim=1)


def monai_like(num_input_channels: int, num_output_channels: int, *, patch_size: Any, deep_supervision: bool) -> Any:
    """Build a U-Net in the manner of MONAI's: nested sequences and skip connections, transposed convolutions."""
    dims = len(patch_size)
    up = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    bottom = ResidualUnit(dims, 8, 8, 1)
    return nn.Sequential(
        ResidualUnit(dims, num_input_channels, 8, 2),
        SkipConnection(bottom),
        up(16, num_output_channels, 3, 2, 1, output_padding=1),
        ResidualUnit(dims, num_output_channels, num_output_channels, 1),
    )


class WithBatchNorm(nn.Module):
    """A user's network with running statistics, a parameter that nothing uses, and a branch of Python."""

    def __init__(self, inputs: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.first = convolution(dims)(inputs, 8, 3, padding=1)
        self.norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](8)
        self.dropout = nn.Dropout(0.2)
        self.last = convolution(dims)(8, outputs, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, data: Tensor) -> Tensor:
        features = F.gelu(self.norm(self.first(data)))
        if self.training:
            features = self.dropout(features)
        return self.last(features)


def users(num_input_channels: int, num_output_channels: int, *, patch_size: Any, deep_supervision: bool) -> Any:
    return WithBatchNorm(num_input_channels, num_output_channels, len(patch_size))


def users_loss(output: Tensor, target: Tensor, *, labels: Any) -> Tensor:
    return F.cross_entropy(output.float(), target[:, 0].long(), label_smoothing=0.1)


class Recording(Trainer):
    """Keeps the loss of each step and the way in which it was computed."""

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        step = super().train_step(batch)
        vars(self).setdefault("losses", []).append(float(step["loss"]))
        vars(self).setdefault("ways", []).append(self.execution.way)
        return step


def train(
    folder: Path, setting: str, *, configuration: str = "3d", dataset_json: Any = DATASET_JSON, **values: Any
) -> Any:
    few = {"num_epochs": 2, "num_iterations_per_epoch": 25, "num_val_iterations_per_epoch": 2, "compile": setting}
    config = settings(**few, **values)
    trainer = make(folder / setting, Recording, configuration=configuration, config=config, dataset_json=dataset_json)
    trainer.run_training()
    return trainer


TASKS: dict[str, dict[str, Any]] = {
    "unet": {"dataset_json": REGIONS_JSON, "optimizer": "adamw", "initial_lr": 1e-3},
    "residual unet": {
        **{"configuration": "2d", "network": "residual-unet", "class_weights": [1, 2, 1]},
        **{"ema_weights": 0.9, "lr_groups": {"encoder.stages.0": 0}},
    },
    "monai-like": {"network": monai_like, "loss": "dice_topk10"},
    "user's": {"configuration": "2d", "network": users, "loss": users_loss},
}
"""Networks and losses, in 3D if not said otherwise."""


@pytest.mark.parametrize("name", TASKS)
def test_losses_of_50_steps_are_the_plain_ones(name: str, tmp_path: Path) -> None:
    plain = train(tmp_path, "off", **TASKS[name])
    compiled = train(tmp_path, "on", **TASKS[name])
    assert {*plain.ways} == {PLAIN}
    assert compiled.ways == [PLAIN] * (1 + PLAIN_STEPS) + [COMPILED] * (49 - PLAIN_STEPS)
    assert compiled.losses == pytest.approx(plain.losses, rel=0, abs=1e-3)
    for column in ("val_losses", "ema_fg_dice"):
        assert compiled.logbook.column(column) == pytest.approx(plain.logbook.column(column), abs=2e-3)
    assert list(compiled.network.state_dict()) == list(plain.network.state_dict())
    assert type(compiled.network) is type(plain.network)


def test_every_training_of_a_process_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = torch.compile, []

    def traced(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **_: original(function, backend=traced, dynamic=False))
    step = StepSettings(device=torch.device("cpu"), precision="fp32", clip_norm=12.0)
    for size in range(1, 12):  # torch compiles a function 8 times
        network = nn.Linear(size, 1)
        optimizer = torch.optim.SGD(network.parameters())
        loss: Any = lambda output, _: output.mean()  # noqa: E731
        parts = StepParts(network=network, loss=loss, optimizer=optimizer)
        compile_loss(parts, step, graphs=False)(torch.ones(2, size), torch.ones(2))
        assert len(seen) == size
