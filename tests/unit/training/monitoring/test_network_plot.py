"""The plot of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from segwright.training.monitoring.network_plot import Layer, plot_network, trace
from segwright.training.trainer import Trainer
from tests.unit.training.tiny_task import make


def test_layers_come_in_the_order_of_computation() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2))
    layers = [Layer("Conv2d", 4, (4, 3)), Layer("ReLU", 4, (4, 3)), Layer("ConvTranspose2d", 2, (8, 6))]
    assert trace(network, 1, (8, 6)) == layers
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("patch_size", [(16, 16), (8, 16, 16)])
def test_a_network_is_drawn(tmp_path: Path, patch_size: tuple[int, ...]) -> None:
    convolution = nn.Conv2d if len(patch_size) == 2 else nn.Conv3d
    plot_network(nn.Sequential(convolution(1, 2, 1)), 1, patch_size, tmp_path / "network.png")
    assert (tmp_path / "network.png").read_bytes().startswith(b"\x89PNG")


class Stubborn(nn.Module):
    """Looks at values, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image) * float(image.mean() + 1)


class StubbornTrainer(Trainer):
    @staticmethod
    def build_network_architecture(*arguments: object, **named: object) -> nn.Module:
        return Stubborn()


def test_a_network_that_cannot_be_drawn_is_still_trained(tmp_path: Path) -> None:
    trainer = make(tmp_path, StubbornTrainer)
    trainer.run_training()
    assert "network_architecture.png is not drawn" in (trainer.output_folder / "training.log").read_text()
    assert not (trainer.output_folder / "network_architecture.png").exists()
