"""Decide whether to plan a low-resolution configuration, and its spacing (nnU-Net behaviour 5.12)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from segwright.planning.presets import LOWRES_COVERAGE, LOWRES_MIN_RATIO, LOWRES_STEP
from segwright.planning.sizing import Budget, Sizing, size_configuration

_MAX_SPACING_RATIO = 2
"""Axes finer than the coarsest by more than this factor are coarsened first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowres:
    """The low-resolution configuration.

    Attributes:
        spacing: In mm, in the plan's axis order (after `transpose_forward`).
        median_shape: Median image shape at that spacing, in voxels, same axis order.
        sizing: Patch, batch and network.
    """

    spacing: tuple[float, ...]
    median_shape: tuple[int, ...]
    sizing: Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class LowresDecision:
    """Whether to plan a low-resolution configuration, and why; `lowres` is None if full resolution is enough."""

    lowres: Lowres | None
    reason: str


def find_lowres(
    spacing: tuple[float, ...], median_shape: tuple[float, ...], fullres: Sizing, budget: Budget
) -> LowresDecision:
    """Search for a low-resolution spacing: coarsen until a patch covers a quarter of the median image.

    nnU-Net behaviour 5.12; dropped if the image then still has more than half of the voxels.

    Args:
        spacing: Full-resolution target spacing in mm, in the plan's axis order (after `transpose_forward`).
        median_shape: Median image shape at that spacing, in voxels, same axis order.
        fullres: Sizing at full resolution.
        budget: Limits of the plan.
    """
    full_voxels = voxels = math.prod(median_shape)
    coverage = math.prod(fullres.topology.patch_size) / full_voxels
    coverage_text = f"a full-resolution patch covers {coverage:.3g} of the median image"
    if coverage >= LOWRES_COVERAGE:
        return LowresDecision(
            lowres=None, reason=f"{coverage_text}, at least {LOWRES_COVERAGE}: no low resolution is needed"
        )
    current, found, steps = list(spacing), None, 0
    while found is None or math.prod(found.sizing.topology.patch_size) / voxels < LOWRES_COVERAGE:
        is_finer = [max(current) / value > _MAX_SPACING_RATIO for value in current]
        current = [
            value * LOWRES_STEP if finer or not any(is_finer) else value
            for value, finer in zip(current, is_finer, strict=True)
        ]
        shape = [old / new * size for old, new, size in zip(spacing, current, median_shape, strict=True)]
        voxels = math.prod(shape)
        rounded = tuple(round(size) for size in shape)
        sizing = size_configuration(current, rounded, dataset_voxels=voxels * budget.num_training, budget=budget)
        found = Lowres(spacing=tuple(current), median_shape=rounded, sizing=sizing)
        steps += 1
    fewer = full_voxels / voxels
    steps_taken = (
        f"{coverage_text}, less than {LOWRES_COVERAGE}; the spacing was coarsened in {steps} steps of factor "
        f"{LOWRES_STEP} until a patch covers {LOWRES_COVERAGE}"
    )
    if fewer < LOWRES_MIN_RATIO:
        return LowresDecision(
            lowres=None,
            reason=f"{steps_taken}, but with only {fewer:.3g} times fewer voxels, less than {LOWRES_MIN_RATIO}",
        )
    return LowresDecision(lowres=found, reason=f"{steps_taken}, with {fewer:.3g} times fewer voxels")
