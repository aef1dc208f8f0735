"""Choose patch and batch size of a configuration, as large as the memory target allows (nnU-Net behaviour 5.9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segwright.core.errors import PlanError
from segwright.networks.mednext.sizes import MAX_STAGES, features_of
from segwright.planning.memory import feature_map_elements, mednext_elements
from segwright.planning.presets import (
    BASE_FEATURES,
    INITIAL_PATCH_VOXELS,
    MAX_FEATURES,
    MIN_BATCH,
    REFERENCE_BATCH,
    Preset,
)
from segwright.planning.rationale import format_sizes
from segwright.planning.topology import Topology, derive_topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of patch and batch size, the same for all configurations of a plan.

    Attributes:
        preset: Planner family.
        gpu_memory_gb: GPU memory target, GB.
        num_classes: Entries of `labels` in `dataset.json`.
        num_training: Number of training cases.
    """

    preset: Preset
    gpu_memory_gb: float
    num_classes: int
    num_training: int

    def reference(self, dims: int) -> float:
        """Return the allowed number of feature-map elements at the reference batch size."""
        return self.preset.reference_elements[dims] * (self.gpu_memory_gb / self.preset.gpu_memory_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """Patch, batch and network of one configuration, with intermediate results for the rationale.

    Attributes:
        topology: Strides, kernels and the final patch.
        features: Channels per stage.
        batch_size: Patches per step.
        elements: Feature-map elements of one sample (nnU-Net behaviour 5.8).
        reference: Elements allowed at the reference batch size.
        first_patch: Initial patch.
        shrink_steps: Number of times an axis was shortened.
        batch_by_memory: Largest batch size by memory.
        batch_by_dataset: Largest batch size by `max_dataset_covered`.
    """

    topology: Topology
    features: tuple[int, ...]
    batch_size: int
    elements: int
    reference: float
    first_patch: tuple[int, ...]
    shrink_steps: int
    batch_by_memory: int
    batch_by_dataset: int


def size_configuration(
    spacing: Sequence[float], median_shape: Sequence[float], *, dataset_voxels: float, budget: Budget
) -> Sizing:
    """Choose patch, batch size and network for one target spacing.

    nnU-Net behaviour 5.9: start from a large patch of the spacing's aspect ratio, not larger than the
    median image; while the network is too big, shorten the axis that covers most of the image; then fill the memory
    with samples, but with no more than a part of the dataset.

    Args:
        spacing: Target spacing of 2 or 3 axes in mm, in the plan's axis order (after `transpose_forward`).
        median_shape: Median shape at that spacing, voxels; may hold halves.
        dataset_voxels: Voxels of the whole dataset in 3D, for 2D configurations as well.
        budget: Limits of the plan.

    Raises:
        PlanError: the median image has no voxel at that spacing, or even the smallest patch needs too much memory.
    """
    dims = len(spacing)
    reference = budget.reference(dims)
    topology = _topology(spacing, _initial_patch(spacing, median_shape), budget.preset)
    if min(topology.patch_size) < 1:
        raise PlanError(
            f"no patch can be planned: at spacing {format_sizes(spacing)} the median image has"
            f" {format_sizes(median_shape)} voxels; check the spacings in the fingerprint or plan with --spacing"
        )
    first_patch, steps = topology.patch_size, 0
    while _is_too_big(elements := _elements(topology, budget), dims, reference, budget.preset):
        topology = _topology(spacing, _shrink(spacing, topology, median_shape, budget.preset), budget.preset)
        steps += 1
    by_memory = round((reference / elements) * REFERENCE_BATCH[dims])
    by_dataset = round(dataset_voxels * budget.preset.max_dataset_covered / math.prod(topology.patch_size))
    return Sizing(
        topology=topology,
        features=_features(topology, budget.preset),
        batch_size=max(min(by_memory, by_dataset), MIN_BATCH),
        elements=elements,
        reference=reference,
        first_patch=first_patch,
        shrink_steps=steps,
        batch_by_memory=by_memory,
        batch_by_dataset=by_dataset,
    )


def _initial_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> list[float]:
    dims = len(spacing)
    inverse = [1 / value for value in spacing]
    scale = (INITIAL_PATCH_VOXELS[dims] / math.prod(inverse)) ** (1 / dims)
    return [min(round(value * scale), size) for value, size in zip(inverse, median_shape, strict=True)]


def _topology(spacing: Sequence[float], patch_size: Sequence[float], preset: Preset) -> Topology:
    max_stages = None if preset.mednext_size is None else MAX_STAGES
    return derive_topology(spacing, patch_size, max_stages=max_stages, kernel_size=preset.kernel_size)


def _features(topology: Topology, preset: Preset) -> tuple[int, ...]:
    if preset.mednext_size is not None:
        return features_of(topology.num_stages)
    most = MAX_FEATURES[len(topology.patch_size)]
    return tuple(min(most, BASE_FEATURES * 2**stage) for stage in range(topology.num_stages))


def _elements(topology: Topology, budget: Budget) -> int:
    preset = budget.preset
    if preset.mednext_size is not None:
        return mednext_elements(topology, preset.mednext_size.at(topology.num_stages), num_classes=budget.num_classes)
    return feature_map_elements(
        preset.network,
        topology,
        features=_features(topology, preset),
        encoder_blocks=preset.encoder_blocks[: topology.num_stages],
        decoder_convs=preset.decoder_convs[: topology.num_stages - 1],
        num_classes=budget.num_classes,
    )


def _is_too_big(elements: int, dims: int, reference: float, preset: Preset) -> bool:
    allowed_samples = REFERENCE_BATCH[dims] / MIN_BATCH if preset.shrinks_2d_late else 1
    return elements / allowed_samples > reference


def _shrink(spacing: Sequence[float], topology: Topology, median_shape: Sequence[float], preset: Preset) -> list[int]:
    """Return the patch with one axis shortened, the one that covers most of the median image (the last one on ties).

    The step is the axis' divisor *after* shortening by the present divisor: an axis that loses a pooling stage shrinks
    by the smaller step only.
    """
    patch = list(topology.patch_size)
    axis = max(range(len(patch)), key=lambda candidate: (patch[candidate] / median_shape[candidate], candidate))
    trial = list(patch)
    trial[axis] -= topology.divisor[axis]
    patch[axis] -= _topology(spacing, trial, preset).divisor[axis]
    if patch[axis] < 1:
        raise PlanError(
            f"no patch fits the memory target: at patch {list(topology.patch_size)} the network is still too large;"
            " raise --gpu-memory or merge labels"
        )
    return patch
