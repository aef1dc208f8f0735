"""Refuse what cannot work with a trainer file, by name and before the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from segwright.compat.nnunet.trainer import VARIANT_SETTINGS, nnUNetTrainer, overrides
from segwright.core.errors import ConfigError
from segwright.training.config import TrainConfig, changed

FIRST_TWO_AXES: Final = "first_two_axes"
"""Value of `mirror_axes` in a variant: the first two axes of a 3D patch, the first of a 2D one."""

SETTINGS_OF_HOOKS: Final[Mapping[str, tuple[str, ...]]] = {
    "build_network_architecture": ("network", "network_kwargs", "norm"),
    "_build_loss": ("loss", "class_weights"),
    "configure_optimizers": (
        *("optimizer", "optimizer_kwargs", "lr_groups", "momentum", "nesterov"),
        *("schedule", "warmup_epochs", "warmup_share"),
    ),
    "train_step": ("clip_norm",),
    "get_training_transforms": ("augmentation", "mirror_axes"),
    "configure_rotation_dummyDA_mirroring_and_inital_patch_size": ("mirror_axes",),
    "get_dataloaders": ("augmentation", "mirror_axes", "sampler", "oversample_by_chance"),
}
"""Settings that have no effect if the file has such a hook."""


def require_settings_with_effect(config: TrainConfig, cls: type[nnUNetTrainer]) -> None:
    """Check that the file does not decide what is set explicitly.

    Raises:
        ConfigError: it does; setting and hook are named.
    """
    for hook, settings in SETTINGS_OF_HOOKS.items():
        found = [name for name in settings if name in config.model_fields_set]
        if found and overrides(cls, hook):
            raise ConfigError(
                f"{found[0]} is set, but {cls.__name__} decides it in {hook}; leave the setting out or change the file"
            )


def with_variant_settings(config: TrainConfig, cls: type[nnUNetTrainer], dims: int) -> TrainConfig:
    """Return the settings with those of a published variant, where they are not set explicitly.

    Args:
        config: the settings.
        cls: of the trainer file.
        dims: spatial axes of a patch.
    """
    given = resolve_axes(getattr(cls, VARIANT_SETTINGS), dims)
    return changed(config, **{key: value for key, value in given.items() if key not in config.model_fields_set})


def resolve_axes(settings: Mapping[str, Any], dims: int) -> dict[str, Any]:
    """Return the settings of a variant with `FIRST_TWO_AXES` as axes of a patch with `dims` axes."""
    if settings.get("mirror_axes") != FIRST_TWO_AXES:
        return dict(settings)
    return {**settings, "mirror_axes": (0, 1) if dims == 3 else (0,)}
