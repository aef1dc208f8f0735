"""Build the training and validation loaders and the augmentation of a run from its settings."""

from __future__ import annotations

from dataclasses import replace

import torch

from segwright.augmentation.recipe import Recipe, build_recipe
from segwright.augmentation.spatial import Mirror
from segwright.core.device import CPU, MPS
from segwright.core.errors import ConfigError, PlanError
from segwright.data.crossval.splits import Split
from segwright.data.labels import Labels
from segwright.data.laterality import LabelPairs, mirrored_values
from segwright.data.plan import Configuration
from segwright.training.cascade import build_previous_stage
from segwright.training.config import TrainConfig
from segwright.training.distributed.context import SINGLE, DistributedContext
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache, CaseSource, choose_placement, total_bytes
from segwright.training.loading.sampling import build_sampler, num_forced
from segwright.training.loading.targets import Scales
from segwright.training.losses.builtin import target_channel

MIRROR = "mirror"


def training_recipe(
    config: TrainConfig, configuration: Configuration, labels: Labels, label_pairs: LabelPairs | None
) -> Recipe:
    """Return the augmentation of a run; mirror axes set in `config` replace those of the recipe.

    With left and right labels (`label_pairs`), mirroring the left-right axis swaps them if the plan says so; otherwise
    that axis is not mirrored, unless `config` names it.

    Raises:
        ConfigError: an axis that a patch does not have, or axes for a recipe without mirroring.
    """
    masked = [channel for channel, is_masked in enumerate(configuration.use_mask_for_norm) if is_masked]
    recipe = build_recipe(
        config.augmentation, configuration.patch_size, masked_channels=masked, kwargs=config.augmentation_kwargs
    )
    axes = config.mirror_axes
    if axes is not None and axes != recipe.mirror_axes:
        if any(not 0 <= axis < configuration.dims for axis in axes):
            raise ConfigError(f"mirror_axes {axes}: a patch has the spatial axes 0 to {configuration.dims - 1}")
        if MIRROR not in recipe.names():
            raise ConfigError(f"mirror_axes {axes}: the augmentation '{config.augmentation}' has no step '{MIRROR}'")
        if not axes:
            return recipe.without(MIRROR)
        recipe = recipe.replace(MIRROR, Mirror(axes=axes))
    if label_pairs is None:
        return recipe
    return _with_laterality(recipe, label_pairs, labels, configuration.dims, requested=axes is not None)


def _with_laterality(recipe: Recipe, label_pairs: LabelPairs, labels: Labels, dims: int, *, requested: bool) -> Recipe:
    """Make mirroring swap left and right labels, or leave out the left-right axis unless it is `requested`.

    Raises:
        PlanError: the plan's label pairs are incomplete.
    """
    lateral = label_pairs.in_patch(dims)
    values = mirrored_values(labels, label_pairs.pairs) if label_pairs.swap else {}
    if values is None:
        raise PlanError(
            f"label pairs {label_pairs.pairs}: both sides must have the same number of labels; make the plan again"
        )
    for step in recipe.steps:
        mirror = step.transform
        if not isinstance(mirror, Mirror) or not set(mirror.axes) & set(lateral):
            continue
        if label_pairs.swap:
            swapped = tuple(values.get(value, value) for value in range(max(values) + 1))
            recipe = recipe.replace(step.name, replace(mirror, lateral_axes=lateral, swapped_labels=swapped))
        elif not requested:
            axes = tuple(axis for axis in mirror.axes if axis not in lateral)
            recipe = recipe.replace(step.name, replace(mirror, axes=axes)) if axes else recipe.without(step.name)
    return recipe


def forced_share(config: TrainConfig) -> float:
    """Return the share of samples that must show foreground.

    With `oversample_by_chance` the default is the share that nnU-Net's rule for whole batches gives, e.g. 0.5 for a
    batch of two (nnU-Net behaviour 8.10).
    """
    share = config.oversample_foreground_percent
    if not config.oversample_by_chance or "oversample_foreground_percent" in config.model_fields_set:
        return share
    assert config.batch_size is not None, "defaults.resolve_config sets the batch size"
    return num_forced(config.batch_size, share) / config.batch_size


def build_loaders(
    cases: CaseSource,
    split: Split,
    *,
    config: TrainConfig,
    configuration: Configuration,
    labels: Labels,
    recipe: Recipe,
    scales: Scales | None,
    device: torch.device,
    distributed: DistributedContext = SINGLE,
) -> tuple[BatchLoader, BatchLoader, CachePlacement]:
    """Return the loaders of training and online validation, and the placement of their cases.

    Args:
        cases: opens preprocessed cases.
        split: training and validation cases.
        config: with its batch size resolved.
        configuration: of the plan.
        labels: of the dataset.
        recipe: augmentation of training batches.
        scales: relative sizes of the network's outputs, None for one output.
        device: of the network; batches are made there, but on the CPU for an Apple GPU.
        distributed: processes that share each batch.
    """
    assert config.batch_size is not None, "defaults.resolve_config sets the batch size"
    batch_device = torch.device(CPU) if device.type == MPS else device
    needed = total_bytes(cases, sorted({*split.train, *split.val}))
    placement = choose_placement(
        config.cache, needed, batch_device, limit_gib=config.cache_gib, num_processes=distributed.world_size
    )
    cache = CaseCache(cases, placement, batch_device)
    training, validation = (
        BatchLoader(
            cache,
            identifiers,
            patch_size=configuration.patch_size,
            batch_size=config.batch_size,
            labels=labels,
            recipe=recipe,
            previous=build_previous_stage(configuration, labels, recipe if is_training else None),
            oversample_foreground_percent=forced_share(config),
            oversample_by_chance=config.oversample_by_chance,
            sampler=build_sampler(config.sampler, config.sampler_kwargs),
            seed=config.seed,
            training=is_training,
            device=batch_device,
            scales=scales,
            channel=target_channel(config.loss),
            distributed=distributed,
        )
        for identifiers, is_training in ((split.train, True), (split.val, False))
    )
    return training, validation, placement
