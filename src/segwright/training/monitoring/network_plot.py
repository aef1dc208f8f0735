"""Plot a network as `network_architecture.png`: resolution and number of channels, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from segwright.core.drawing import figure_file
from segwright.core.errors import ModelError
from segwright.networks.shapes import copy_to_meta

_SIZE_INCHES: Final = (11.0, 6.0)
_DPI: Final = 100
_MAX_LABELS: Final = 24


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer in the order of computation: its class, and the channels and spatial size of its output."""

    kind: str
    channels: int
    size: tuple[int, ...]


def trace(network: nn.Module, num_input_channels: int, patch_size: Sequence[int]) -> list[Layer]:
    """Return the layers of a network that output feature maps (B, C, *S), traced on the meta device (shapes only).

    Raises:
        ModelError: the network cannot be traced, or has no such layer.
    """
    layers: list[Layer] = []
    shape = (2, num_input_channels, *patch_size)

    def add_layer(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == len(shape):
            layers.append(Layer(type(module).__name__, output.shape[1], tuple(output.shape[2:])))

    try:
        copy = copy_to_meta(network)
        for module in copy.modules():
            if not any(module.children()):
                module.register_forward_hook(add_layer)
        with torch.no_grad():
            copy(torch.empty(shape, device="meta"))
    except Exception as error:
        raise ModelError(f"the network cannot be traced ({type(error).__name__}: {error})") from error
    if not layers:
        raise ModelError("the network has no layer with feature maps to draw")
    return layers


def plot_network(network: nn.Module, num_input_channels: int, patch_size: Sequence[int], path: Path) -> None:
    """Draw the layers of a network into a file, atomically.

    Raises:
        ModelError: it cannot be traced.
    """
    layers = trace(network, num_input_channels, patch_size)
    with figure_file(path, size_inches=_SIZE_INCHES, dpi=_DPI) as figure:
        sizes, channels = figure.subplots(2, 1, sharex=True)
        edges = range(len(layers) + 1)
        extents = [_mean_extent(layer.size) for layer in layers]
        sizes.stairs(extents, edges, fill=True, color="tab:blue", alpha=0.5)
        sizes.set_yscale("log", base=2)
        sizes.set_ylabel("mean extent [voxels]")
        changes = [index for index, layer in enumerate(layers) if index == 0 or layer.size != layers[index - 1].size]
        for index in changes[:_MAX_LABELS]:
            text = " x ".join(map(str, layers[index].size))
            sizes.annotate(text, (index, extents[index]), rotation=60, fontsize=7, va="bottom")
        sizes.set_ylim(1, 8 * max(extents))
        channels.stairs([layer.channels for layer in layers], edges, fill=True, color="tab:orange", alpha=0.5)
        channels.set_ylabel("channels")
        channels.set_xlabel("layer, in the order of computation")
        parameters = sum(parameter.numel() for parameter in network.parameters())
        figure.suptitle(f"{type(network).__name__}: {parameters:,} parameters, {len(layers)} layers with feature maps")


def _mean_extent(size: Sequence[int]) -> float:
    """Return the geometric mean of the sizes."""
    product = 1.0
    for extent in size:
        product *= extent
    return float(product ** (1 / len(size)))
