"""Plan a dataset for the network of a checkpoint that nnssl pre-trained (nnU-Net behaviour 8.12).

The network is fixed, a batch has two patches of the recommended size, and every channel is normalised by z-scores, as
in the pre-training. In contrast to nnU-Net a patch is not larger than the images need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import PlanError
from segwright.data.plan import Plan, architecture_block
from segwright.planning.planner import FULLRES
from segwright.planning.presets import BASE_FEATURES, MAX_FEATURES, MIN_EDGE, Network, preset
from segwright.planning.rationale import EVERYWHERE, RATIONALE, Decision, decisions, format_sizes

BASE_PRESET: Final = "resenc-l"
"""Plans of this preset are the basis: its network is the checkpoint's, but for strides and kernels."""

NUM_STAGES: Final = 6
_AXES: Final = 3
_DIVISOR: Final = 2 ** (NUM_STAGES - 1)
_BATCH: Final = 2
_SCHEME: Final = "ZScoreNormalization"
_REPLACED: Final = ("normalisation", "network", "low resolution and cascade")
_SPACING: Final = "target spacing"


def plans_name_like(resampling: str) -> str:
    """Return the default name of plans for a checkpoint of nnssl.

    >>> plans_name_like("default")
    'nnsslResEncUNetLPlans'
    """
    return preset(BASE_PRESET, resampling).plans_name.replace("nnUNet", "nnssl", 1)


def plan_like(plan: Plan, *, patch_size: Sequence[int], checkpoint: Path, decided_spacing: bool) -> Plan:
    """Return plans of `BASE_PRESET` changed for the network of a checkpoint.

    Args:
        plan: made for the dataset at the spacing of the pre-training.
        patch_size: that the checkpoint recommends, in voxels.
        checkpoint: its path, for the reasons.
        decided_spacing: whether the spacing is the checkpoint's.

    Raises:
        PlanError: the images are 2D, or the network cannot divide the patch.
    """
    if FULLRES not in plan.configurations:
        raise PlanError(f"{checkpoint}: its network is 3D, and the images of '{plan.dataset_name}' are 2D")
    if any(size % _DIVISOR for size in patch_size):
        raise PlanError(
            f"{checkpoint}: recommends patches of {format_sizes(patch_size)} voxels, which its network cannot halve "
            f"{NUM_STAGES - 1} times; each size must be a multiple of {_DIVISOR}"
        )
    block: dict[str, Any] = {**plan.configurations[FULLRES]}
    patch = _needed(patch_size, block["median_image_size_in_voxels"])
    schemes = [_SCHEME] * len(block["normalization_schemes"])
    block |= {
        "data_identifier": f"{plan.plans_name}_{FULLRES}",
        "batch_size": _BATCH,
        "patch_size": patch,
        "normalization_schemes": schemes,
        "architecture": _architecture(),
    }
    reason = f"as {checkpoint} was pre-trained"
    made = [
        Decision(configuration=EVERYWHERE, decision=name, value=value, reason=reason)
        for name, value in (("normalisation", schemes), ("network", "ResEncL of nnssl"))
    ]
    made += [
        Decision(
            configuration=FULLRES,
            decision="patch size",
            value=patch,
            reason=f"{format_sizes(patch_size)} is recommended by the checkpoint; at most the median image "
            f"({format_sizes(block['median_image_size_in_voxels'])}), in steps of {_DIVISOR}",
        ),
        Decision(configuration=FULLRES, decision="batch size", value=_BATCH, reason="as nnU-Net fine-tunes"),
    ]
    kept = [each for each in decisions(plan) if each.configuration == EVERYWHERE and each.decision not in _REPLACED]
    if decided_spacing:
        kept = [replace(each, reason=reason) if each.decision == _SPACING else each for each in kept]
    own = {**plan.segwright, RATIONALE: [each.to_json() for each in (*kept, *made)]}
    return Plan.from_json({**plan.to_json(), "configurations": {FULLRES: block}, "segwright": own})


def _needed(recommended: Sequence[int], median: Sequence[float]) -> list[int]:
    """Return the recommended patch, shortened to the median image, in steps that the network can halve."""
    least = MIN_EDGE * _DIVISOR
    return [
        min(size, max(least, math.ceil(extent / _DIVISOR) * _DIVISOR))
        for size, extent in zip(recommended, median, strict=True)
    ]


def _architecture() -> dict[str, Any]:
    """Return the network that nnssl calls ResEncL, in the format of a plan."""
    base = preset(BASE_PRESET)
    return architecture_block(
        Network.RESIDUAL.value,
        dims=_AXES,
        features=tuple(min(MAX_FEATURES[_AXES], BASE_FEATURES * 2**stage) for stage in range(NUM_STAGES)),
        kernel_sizes=((3,) * _AXES,) * NUM_STAGES,
        strides=((1,) * _AXES, *((2,) * _AXES,) * (NUM_STAGES - 1)),
        encoder_blocks=base.encoder_blocks[:NUM_STAGES],
        decoder_convs=base.decoder_convs[: NUM_STAGES - 1],
    )
