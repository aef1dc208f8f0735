"""A planned configuration: its block in `plans.json` and its rationale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segwright.data.plan import architecture_block
from segwright.networks.mednext import sizes as mednext
from segwright.planning.normalization import Normalization
from segwright.planning.presets import MIN_BATCH, REFERENCE_BATCH, Preset, resampling_functions
from segwright.planning.rationale import Decision, format_sizes
from segwright.planning.sizing import Budget, Sizing

PREPROCESSOR = "DefaultPreprocessor"
"""nnU-Net's name of its default preprocessor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A planned configuration, before it is written into the plan.

    Attributes:
        name: `2d`, `3d_lowres` or `3d_fullres`.
        data_identifier: Name of its preprocessed data.
        spacing: Target spacing of its axes.
        median_shape: Median image shape at that spacing, voxels.
        sizing: Patch, batch and network.
        batch_dice: Whether the Dice loss is computed over the batch instead of per sample.
        batch_dice_reason: Reason for `batch_dice`.
        next_stage: Configuration that refines its predictions.
    """

    name: str
    data_identifier: str
    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    sizing: Sizing
    batch_dice: bool
    batch_dice_reason: str
    next_stage: str | None = None


def configuration_block(draft: Draft, preset: Preset, normalization: Normalization) -> dict[str, Any]:
    """Return the configuration in the format of `plans.json`, keys in nnU-Net's order (nnU-Net behaviour 5.13)."""
    sizing = draft.sizing
    block = {
        "data_identifier": draft.data_identifier,
        "preprocessor_name": PREPROCESSOR,
        "batch_size": sizing.batch_size,
        "patch_size": list(sizing.topology.patch_size),
        "median_image_size_in_voxels": list(draft.median_shape),
        "spacing": list(draft.spacing),
        "normalization_schemes": list(normalization.schemes),
        "use_mask_for_norm": list(normalization.use_mask),
        **resampling_functions(preset.resampling),
        "architecture": _architecture(sizing, preset),
        "batch_dice": draft.batch_dice,
    }
    return block if draft.next_stage is None else {**block, "next_stage": draft.next_stage}


def explain_draft(draft: Draft, budget: Budget) -> Iterator[Decision]:
    """Yield the decisions behind one configuration."""
    sizing, topology = draft.sizing, draft.sizing.topology
    dims = len(draft.spacing)
    for decision, value, reason in (
        ("patch size", list(topology.patch_size), _patch_reason(draft)),
        ("batch size", sizing.batch_size, _batch_reason(draft, budget)),
        (
            "topology",
            {"stages": topology.num_stages, "downsampling": list(topology.divisor), "features": list(sizing.features)},
            _topology_reason(draft),
        ),
        (
            "memory estimate, GB",
            _gigabytes(sizing, budget, dims),
            f"{sizing.elements} feature-map elements per sample; {sizing.reference:.6g} at batch size"
            f" {REFERENCE_BATCH[dims]} correspond to {budget.gpu_memory_gb:g} GB",
        ),
        ("batch dice", draft.batch_dice, draft.batch_dice_reason),
    ):
        yield Decision(configuration=draft.name, decision=decision, value=value, reason=reason)


def _architecture(sizing: Sizing, preset: Preset) -> dict[str, Any]:
    topology, num_stages = sizing.topology, sizing.topology.num_stages
    shape: Any = {
        "dims": len(topology.patch_size),
        "kernel_sizes": topology.kernel_sizes,
        "strides": topology.strides,
    }
    if preset.mednext_size is not None:
        return mednext.architecture_block(preset.mednext_size.at(num_stages), **shape)
    return architecture_block(
        preset.network.value,
        features=sizing.features,
        encoder_blocks=preset.encoder_blocks[:num_stages],
        decoder_convs=preset.decoder_convs[: num_stages - 1],
        **shape,
    )


def _gigabytes(sizing: Sizing, budget: Budget, dims: int) -> float:
    share = sizing.elements * sizing.batch_size / (sizing.reference * REFERENCE_BATCH[dims])
    return round(share * budget.gpu_memory_gb, 2)


def _patch_reason(draft: Draft) -> str:
    sizing = draft.sizing
    start = (
        f"{format_sizes(sizing.first_patch)}: aspect ratio from spacing {format_sizes(draft.spacing)}, at most the"
        f" median image ({format_sizes(draft.median_shape)}), rounded up to multiples of the network's total stride"
    )
    if not sizing.shrink_steps:
        return f"initial patch {start}; it fits the memory"
    times = "once" if sizing.shrink_steps == 1 else f"{sizing.shrink_steps} times"
    return f"initial patch {start}; shortened {times}, along the axis that covers most of the image, to fit the memory"


def _batch_reason(draft: Draft, budget: Budget) -> str:
    sizing = draft.sizing
    bounds = (
        f"memory allows {sizing.batch_by_memory}, {budget.preset.max_dataset_covered:.0%} of the dataset's voxels"
        f" allow {sizing.batch_by_dataset}"
    )
    least = min(sizing.batch_by_memory, sizing.batch_by_dataset)
    return f"{bounds}; the smaller one" if least >= MIN_BATCH else f"{bounds}; at least {MIN_BATCH}"


def _topology_reason(draft: Draft) -> str:
    topology = draft.sizing.topology
    flat = [stage for stage, kernel in enumerate(topology.kernel_sizes) if min(kernel) < max(kernel)]
    uneven = [stage for stage, stride in enumerate(topology.strides) if stage and min(stride) < max(stride)]
    reason = "an axis is halved while at least 4 voxels are left and its spacing is within a factor of 2 of the finest"
    if flat:
        reason += f"; kernel size 1 along the coarse axis in stages {_listed(flat)}, until spacings are comparable"
    if uneven:
        reason += f"; in stages {_listed(uneven)} only some axes are halved"
    return reason


def _listed(stages: list[int]) -> str:
    return ", ".join(map(str, stages))
