"""Sizes of MedNeXt: blocks and expansion ratios per stage, and the arguments of the network in a plan; without torch.

Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation", MICCAI 2023, arXiv
2303.09975; its table of configurations gives all numbers here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

NAME: Final = "mednext"
"""Name of the network in plans, checkpoints and settings."""

MAX_STAGES: Final = 5
"""Resolutions of the paper's network: four of encoder and decoder, and the bottleneck."""

BASE_FEATURES: Final = 32
"""Channels of the first stage, doubled with each further one."""

KERNEL_SIZES: Final = (3, 5)
"""Depthwise kernels of the paper."""

_Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCounts:
    """Blocks and expansion ratios of a network.

    Attributes:
        blocks: blocks per encoder stage, the bottleneck last.
        expansions: factor on the channels inside the blocks of these stages, and of the block that downsamples to them.
        decoder_blocks: blocks per decoder stage, lowest resolution first.
        decoder_expansions: factor inside the blocks of these stages, and of the block that upsamples to them.
    """

    blocks: _Sizes
    expansions: _Sizes
    decoder_blocks: _Sizes
    decoder_expansions: _Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size of the paper, one entry per stage: four of the encoder, bottleneck, four of the decoder.

    Attributes:
        blocks: number of blocks.
        expansions: expansion ratio.
    """

    blocks: _Sizes
    expansions: _Sizes

    def at(self, num_stages: int) -> StageCounts:
        """Return the counts for a network of 2 to `MAX_STAGES` resolutions.

        With fewer than in the paper the stages next to the bottleneck are left out.
        """
        encoder, middle, first = num_stages - 1, MAX_STAGES - 1, 2 * MAX_STAGES - num_stages
        return StageCounts(
            blocks=(*self.blocks[:encoder], self.blocks[middle]),
            expansions=(*self.expansions[:encoder], self.expansions[middle]),
            decoder_blocks=self.blocks[first:],
            decoder_expansions=self.expansions[first:],
        )


_GROWING: Final = (2, 3, 4, 4, 4, 4, 4, 3, 2)

SIZES: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "S": Size(blocks=(2,) * 9, expansions=(2,) * 9),
        "B": Size(blocks=(2,) * 9, expansions=_GROWING),
        "M": Size(blocks=(3, 4, 4, 4, 4, 4, 4, 4, 3), expansions=_GROWING),
        "L": Size(blocks=(3, 4, 8, 8, 8, 8, 8, 4, 3), expansions=(3, 4, 8, 8, 8, 8, 8, 4, 3)),
    }
)


def features_of(num_stages: int) -> _Sizes:
    """Return the channels per stage."""
    return tuple(BASE_FEATURES * 2**stage for stage in range(num_stages))


def planned_arguments(
    counts: StageCounts, *, dims: int, kernel_sizes: Sequence[_Sizes], strides: Sequence[_Sizes]
) -> dict[str, Any]:
    """Return the network's arguments as a plan contains them; keys that U-Nets have too keep nnU-Net's names.

    Args:
        counts: blocks and expansion ratios.
        dims: 2 or 3 spatial axes.
        kernel_sizes: depthwise kernel per stage and axis.
        strides: downsampling per stage and axis.
    """
    return {
        "n_stages": len(strides),
        "features_per_stage": list(features_of(len(strides))),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [list(kernel) for kernel in kernel_sizes],
        "strides": [list(stride) for stride in strides],
        "blocks_per_stage": list(counts.blocks),
        "expansion_per_stage": list(counts.expansions),
        "decoder_blocks_per_stage": list(counts.decoder_blocks),
        "decoder_expansion_per_stage": list(counts.decoder_expansions),
    }


def architecture_block(
    counts: StageCounts, *, dims: int, kernel_sizes: Sequence[_Sizes], strides: Sequence[_Sizes]
) -> dict[str, Any]:
    """Return the `architecture` block of a plan; arguments as for `planned_arguments`."""
    arguments = planned_arguments(counts, dims=dims, kernel_sizes=kernel_sizes, strides=strides)
    return {"network_class_name": NAME, "arch_kwargs": arguments, "_kw_requires_import": ["conv_op"]}
