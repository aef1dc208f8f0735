"""Build a custom network with a function.

`segwright train DATASET --config 3d_fullres --fold 0 --network examples.tiny_network:build --network-arg width=24`
"""

from __future__ import annotations

from torch import nn


def build(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    width: int = 16,
) -> nn.Module:
    """Return three convolutions; with a single output, deep supervision has no effect."""
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(patch_size)]
    return nn.Sequential(
        convolution(num_input_channels, width, 3, padding=1),
        nn.LeakyReLU(),
        convolution(width, width, 3, padding=1),
        nn.LeakyReLU(),
        convolution(width, num_output_channels, 1),
    )
