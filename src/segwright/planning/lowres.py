"""Whether a low-resolution configuration is worth having, and at which spacing (nnU-Net behaviour 5.12)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from segwright.planning.presets import LOWRES_COVERAGE, LOWRES_MIN_RATIO, LOWRES_STEP
from segwright.planning.sizing import Budget, Sizing, size_configuration

_COMPARABLE = 2
"""Axes finer than the coarsest by more than this are coarsened first, until all are comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowres:
    """The low-resolution configuration.

    Attributes:
        spacing: Per axis, transposed.
        median_shape: Median image at that spacing, voxels.
        sizing: Patch, batch and network.
    """

    spacing: tuple[float, ...]
    median_shape: tuple[int, ...]
    sizing: Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Outcome of the search, `lowres` being None where full resolution is enough; with the reason."""

    lowres: Lowres | None
    because: str


def find_lowres(spacing: tuple[float, ...], median_shape: tuple[float, ...], fullres: Sizing, budget: Budget) -> Search:
    """Coarsen the spacing until a patch covers a quarter of the median image.

    nnU-Net behaviour 5.12; dropped again where it has less than twice fewer voxels.

    Args:
        spacing: Full-resolution target, transposed.
        median_shape: Median image at that spacing.
        fullres: What was sized for it.
        budget: Bounds of the plan.
    """
    full_voxels = voxels = math.prod(median_shape)
    coverage = math.prod(fullres.topology.patch_size) / full_voxels
    seen = f"a full-resolution patch covers {coverage:.3g} of the median image"
    if coverage >= LOWRES_COVERAGE:
        return Search(lowres=None, because=f"{seen}, not less than {LOWRES_COVERAGE}: no coarser view is needed")
    current, found, steps = list(spacing), None, 0
    while found is None or math.prod(found.sizing.topology.patch_size) / voxels < LOWRES_COVERAGE:
        coarser = [max(current) / value > _COMPARABLE for value in current]
        current = [
            value * LOWRES_STEP if lagging or not any(coarser) else value
            for value, lagging in zip(current, coarser, strict=True)
        ]
        shape = [full / low * size for full, low, size in zip(spacing, current, median_shape, strict=True)]
        voxels = math.prod(shape)
        rounded = tuple(round(size) for size in shape)
        sizing = size_configuration(current, rounded, dataset_voxels=voxels * budget.num_training, budget=budget)
        found = Lowres(spacing=tuple(current), median_shape=rounded, sizing=sizing)
        steps += 1
    fewer = full_voxels / voxels
    steps_taken = f"{seen}, less than {LOWRES_COVERAGE}; it does after {steps} steps of {LOWRES_STEP}"
    if fewer < LOWRES_MIN_RATIO:
        return Search(
            lowres=None,
            because=f"{steps_taken}, but then there are only {fewer:.3g} times fewer voxels, not {LOWRES_MIN_RATIO}",
        )
    return Search(lowres=found, because=f"{steps_taken}, with {fewer:.3g} times fewer voxels")
