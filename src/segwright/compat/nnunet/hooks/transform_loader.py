"""Loaders of a trainer file's own transforms or datasets, built as nnU-Net does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segwright.compat.nnunet.default_transforms import call_transform_hook, is_old_hook
from segwright.compat.nnunet.hooks.iterators import loaders_over
from segwright.compat.nnunet.names.loaders import SingleThreadedAugmenter, nnUNetDataLoader
from segwright.compat.nnunet.names.transforms import SampleTransform
from segwright.compat.nnunet.trainer import nnUNetTrainer, overrides
from segwright.core.errors import ConfigError
from segwright.training.loading.prefetch import Loader
from segwright.training.trainer import Trainer


def file_loaders(
    run: Trainer, user: nnUNetTrainer, datasets: tuple[Any, Any], augmentation: tuple[Any, bool, Any, Any]
) -> tuple[Loader, Loader]:
    """Return the loaders of training and validation batches with the file's transforms.

    Args:
        run: the training.
        user: the object of the trainer file.
        datasets: of training and validation cases.
        augmentation: rotation range, rotation in the plane only, size to read, mirrored axes.

    Raises:
        ConfigError: for the second stage of a cascade, or a hook has an unknown parameter.
    """
    if user.is_cascaded:
        raise ConfigError(
            f"{type(user).__name__}: own transforms or datasets are not supported for the second stage of a cascade"
        )
    values = _transform_values(user, augmentation)
    initial_size = [int(size) for size in augmentation[2]]
    hooks = (user.get_training_transforms, user.get_validation_transforms)
    transforms = [call_transform_hook(hook, values) for hook in hooks]
    is_old = is_old_hook(user.get_training_transforms)
    plain: Any
    if overrides(type(user), "get_plain_dataloaders"):
        plain = user.get_plain_dataloaders(initial_size, len(values["patch_size"]))
        is_old = True
    else:
        batched = [is_old and not isinstance(each, SampleTransform) for each in transforms]
        inner = [None if is_batched else each for is_batched, each in zip(batched, transforms, strict=True)]
        plain = plain_loaders(user, datasets, initial_size, transforms=inner)
        is_old = any(batched)
        transforms = [each if is_batched else None for is_batched, each in zip(batched, transforms, strict=True)]
    if is_old:
        plain = [SingleThreadedAugmenter(loader, each) for loader, each in zip(plain, transforms, strict=True)]
    config, purpose = run.config, "transforms"
    return loaders_over(plain, seed=config.seed, purpose=purpose, device=run.device, deterministic=config.deterministic)


def plain_loaders(
    user: nnUNetTrainer,
    datasets: tuple[Any, Any],
    initial_size: Sequence[int],
    *,
    transforms: Sequence[Any] = (None, None),
) -> tuple[nnUNetDataLoader, nnUNetDataLoader]:
    """Return nnU-Net's loaders of training and validation cases.

    Args:
        user: the object of the trainer file.
        datasets: of training and validation cases.
        initial_size: to read for training, in voxels.
        transforms: of one sample; None for batches of arrays.
    """
    patch_size = [int(size) for size in user.configuration_manager.patch_size]
    training, validation = (
        nnUNetDataLoader(
            dataset,
            user.batch_size or user.configuration_manager.batch_size,
            size,
            patch_size,
            user.label_manager,
            user.oversample_foreground_percent,
            None,
            None,
            bool(user.probabilistic_oversampling),
            transform,
        )
        for dataset, size, transform in zip(datasets, (initial_size, patch_size), transforms, strict=True)
    )
    return training, validation


def _transform_values(user: nnUNetTrainer, augmentation: tuple[Any, bool, Any, Any]) -> dict[str, Any]:
    """Return the arguments of the transform hooks by name."""
    rotation, in_plane, _, axes = augmentation
    labels = user.label_manager
    regions: list[Any] | None = labels.foreground_regions if labels.has_regions else None
    if regions is not None and labels.has_ignore_label:
        regions = [*regions, labels.ignore_label]
    return {
        "patch_size": [int(size) for size in user.configuration_manager.patch_size],
        "rotation_for_DA": rotation,
        "deep_supervision_scales": user._get_deep_supervision_scales(),
        "mirror_axes": axes,
        "do_dummy_2d_data_aug": in_plane,
        "order_resampling_data": 3,
        "order_resampling_seg": 1,
        "border_val_seg": -1,
        "use_mask_for_norm": user.configuration_manager.use_mask_for_norm,
        "is_cascaded": False,
        "foreground_labels": labels.foreground_labels,
        "regions": regions,
        "ignore_label": labels.ignore_label,
    }
