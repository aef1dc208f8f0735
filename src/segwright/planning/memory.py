"""Estimate the memory of a network, in feature-map elements, in closed form (nnU-Net behaviour 5.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segwright.networks.mednext.sizes import StageCounts, features_of
from segwright.planning.presets import Network
from segwright.planning.topology import Topology


def feature_map_elements(
    network: Network,
    topology: Topology,
    *,
    features: Sequence[int],
    encoder_blocks: Sequence[int],
    decoder_convs: Sequence[int],
    num_classes: int,
) -> int:
    """Return the number of output elements of all convolutions of a U-Net for one sample, deep supervision off.

    nnU-Net 2.8.1 finds the same number by building the network and summing; the number of input channels
    does not count (nnU-Net behaviour 5.8).

    Args:
        network: U-Net family.
        topology: Strides and patch size, which is divisible by the strides.
        features: Channels per stage.
        encoder_blocks: Convolutions (plain) or residual blocks of two (residual) per encoder stage.
        decoder_convs: Convolutions per decoder stage, lowest resolution first.
        num_classes: Entries of `labels` in `dataset.json`, background, ignore and regions alike
            (nnU-Net behaviour 5.8).
    """
    maps = [channels * voxels for channels, voxels in zip(features, _voxels(topology), strict=True)]
    assert network is not Network.MEDNEXT, "counted by mednext_elements"
    if network is Network.PLAIN:
        total = sum(count * size for count, size in zip(encoder_blocks, maps, strict=True))
    else:
        total = maps[0]  # the stem, at input resolution
        total += sum(2 * count * size for count, size in zip(encoder_blocks, maps, strict=True))
        total += sum(maps[stage] for stage in range(topology.num_stages) if _projects(topology, features, stage))
    upsampled = reversed(maps[:-1])
    total += sum((count + 1) * size for count, size in zip(decoder_convs, upsampled, strict=True))
    return total + num_classes * math.prod(topology.patch_size)


def mednext_elements(topology: Topology, counts: StageCounts, *, num_classes: int) -> int:
    """Return the number of output elements of all convolutions of MedNeXt for one sample, deep supervision off.

    A block has a depthwise convolution, an expansion and a compression; one that changes the resolution also a
    convolution as residual.

    Args:
        topology: Strides and patch size, which is divisible by the strides.
        counts: Blocks and expansion ratios.
        num_classes: Entries of `labels` in `dataset.json`.
    """
    features, voxels = features_of(topology.num_stages), _voxels(topology)
    total = features[0] * voxels[0]  # the stem
    for stage, (blocks, ratio) in enumerate(zip(counts.blocks, counts.expansions, strict=True)):
        total += blocks * (2 + ratio) * features[stage] * voxels[stage]
        if stage:
            total += ((1 + ratio) * features[stage - 1] + 2 * features[stage]) * voxels[stage]
    for index, (blocks, ratio) in enumerate(zip(counts.decoder_blocks, counts.decoder_expansions, strict=True)):
        stage = topology.num_stages - 2 - index
        total += blocks * (2 + ratio) * features[stage] * voxels[stage]
        total += ((1 + ratio) * features[stage + 1] + 2 * features[stage]) * voxels[stage]
    return total + num_classes * math.prod(topology.patch_size)


def _voxels(topology: Topology) -> list[int]:
    """Return the number of voxels of a feature map per stage."""
    sizes, voxels = list(topology.patch_size), []
    for stride in topology.strides:
        sizes = [size // factor for size, factor in zip(sizes, stride, strict=True)]
        voxels.append(math.prod(sizes))
    return voxels


def _projects(topology: Topology, features: Sequence[int], stage: int) -> bool:
    """Return whether the first residual block of a stage has a convolution in its skip path."""
    before = features[max(stage - 1, 0)]  # the stem has the channels of stage 0
    return features[stage] != before or max(topology.strides[stage]) > 1
