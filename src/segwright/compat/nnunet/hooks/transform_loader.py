"""Loaders of a trainer file's own transforms or datasets, built as nnU-Net does."""

from __future__ import annotations

from typing import Any

from segwright.compat.nnunet.default_transforms import call_transform_hook, is_old_hook
from segwright.compat.nnunet.hooks.iterators import IteratorLoader
from segwright.compat.nnunet.names.loaders import SingleThreadedAugmenter, nnUNetDataLoader
from segwright.compat.nnunet.names.transforms import SampleTransform
from segwright.compat.nnunet.trainer import nnUNetTrainer
from segwright.core.errors import ConfigError
from segwright.training.trainer import Trainer


def file_loaders(
    run: Trainer, user: nnUNetTrainer, datasets: tuple[Any, Any], augmentation: tuple[Any, bool, Any, Any]
) -> tuple[IteratorLoader, IteratorLoader]:
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
    rotation, in_plane, initial_size, axes = augmentation
    patch_size = [int(size) for size in user.configuration_manager.patch_size]
    labels = user.label_manager
    values: dict[str, Any] = {
        "patch_size": patch_size,
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
        "regions": labels.foreground_regions if labels.has_regions else None,
        "ignore_label": labels.ignore_label,
    }
    if values["regions"] is not None and labels.has_ignore_label:
        values["regions"] = [*values["regions"], labels.ignore_label]
    hooks = (user.get_training_transforms, user.get_validation_transforms)
    sizes = ([int(size) for size in initial_size], patch_size)
    return tuple(  # type: ignore[return-value]
        _loader(run, user, dataset, hook, values, size, f"{purpose} transforms")
        for dataset, hook, size, purpose in zip(datasets, hooks, sizes, ("training", "validation"), strict=True)
    )


def _loader(
    run: Trainer,
    user: nnUNetTrainer,
    dataset: Any,
    hook: Any,
    values: dict[str, Any],
    read_size: list[int],
    purpose: str,
) -> IteratorLoader:
    transforms = call_transform_hook(hook, values)
    is_old = is_old_hook(user.get_training_transforms) or type(transforms).__module__.startswith("batchgenerators.")
    takes_batches = is_old and not isinstance(transforms, SampleTransform)
    loader = nnUNetDataLoader(
        dataset,
        run.batch_size or user.configuration_manager.batch_size,
        read_size,
        values["patch_size"],
        user.label_manager,
        user.oversample_foreground_percent,
        None,
        None,
        bool(user.probabilistic_oversampling),
        None if takes_batches else transforms,
    )
    iterator: Any = SingleThreadedAugmenter(loader, transforms) if takes_batches else loader
    return IteratorLoader(iterator, seed=run.config.seed, purpose=purpose)
