"""Training targets: label maps or region channels, one for each output resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segwright.data.labels import ClassKey, Labels

Scales = Sequence[Sequence[float]]
"""Relative size of each network output per spatial axis, the highest resolution first."""


def encode_targets(
    maps: torch.Tensor, labels: Labels, scales: Scales | None = None, *, channel: torch.Tensor | None = None
) -> torch.Tensor | list[torch.Tensor]:
    """Return the training target of int16 label maps (B, 1, *S); -1, outside the case or its mask, becomes background.

    Without regions the target is the label map; with regions it is boolean channels (B, R, *S) in the order of
    declaration, then one for the ignore label, if any. With `scales` the result is a list, one target per output
    (nnU-Net behaviour 10.1, 10.6, 10.7). A further `channel`, bool (B, 1, *S), becomes the last one of each target.
    """
    maps = maps.clamp_min(0)
    if scales is None:
        return _with_channel(_encode(maps, labels), channel)
    return [
        _with_channel(_encode(downsample(maps, scale), labels), None if channel is None else downsample(channel, scale))
        for scale in scales
    ]


def downsample(maps: torch.Tensor, scale: Sequence[float]) -> torch.Tensor:
    """Return `maps` (B, L, *S) at round(size * scale) voxels per axis by the `nearest-exact` rule."""
    for axis, (size, factor) in enumerate(zip(maps.shape[2:], scale, strict=True)):
        reduced = max(round(size * factor), 1)
        if reduced != size:
            # float32 as in torch's own rule, so that ties at voxel borders fall on the same side
            step = torch.tensor(size / reduced, dtype=torch.float32)  # on a GPU the host would wait for it
            position = (torch.arange(reduced, dtype=torch.float32) + 0.5) * step
            index = position.floor().to(torch.int64).clamp_max(size - 1)
            maps = maps.index_select(axis + 2, index.to(maps.device, non_blocking=True))
    return maps


def target_bytes(labels: Labels, *, has_channel: bool = False) -> int:
    """Return the bytes of a target per voxel: an int16 map, or a boolean channel for each region; one more or not."""
    channels = _channels(labels)
    if channels is None:
        return (1 + has_channel) * torch.int16.itemsize
    return (len(channels) + has_channel) * torch.bool.itemsize


def _with_channel(target: torch.Tensor, channel: torch.Tensor | None) -> torch.Tensor:
    return target if channel is None else torch.cat((target, channel.to(target.dtype)), dim=1)


def _channels(labels: Labels) -> list[ClassKey] | None:
    """Return the regions, the ignore label last; None without regions."""
    regions, ignore = labels.regions, labels.ignore_label
    if regions is None:
        return None
    return [*regions] if ignore is None else [*regions, ignore]


def _encode(maps: torch.Tensor, labels: Labels) -> torch.Tensor:
    channels = _channels(labels)
    if channels is None:
        return maps
    encoded = torch.zeros((len(maps), len(channels), *maps.shape[2:]), dtype=torch.bool, device=maps.device)
    for index, channel in enumerate(channels):
        for value in channel if isinstance(channel, tuple) else (channel,):
            encoded[:, index] |= maps[:, 0] == value
    return encoded
