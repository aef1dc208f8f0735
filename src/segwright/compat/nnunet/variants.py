"""Published variants of nnU-Net's trainer as base classes of trainer files, made from one table of settings.

A variant is the base class with settings of our trainer (nnU-Net behaviour 8.10); settings given explicitly, and what a
file sets itself, replace them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from segwright.compat.nnunet.hooks.rules import FIRST_TWO_AXES, resolve_axes
from segwright.compat.nnunet.names.losses import DC_and_CE_loss, DeepSupervisionWrapper, MemoryEfficientSoftDiceLoss
from segwright.compat.nnunet.trainer import VARIANT_SETTINGS, nnUNetTrainer
from segwright.core.errors import ConfigError
from segwright.training.losses.builtin import deep_supervision_weights

_ROTATION: Final = math.pi / 6
"""30 degrees (nnU-Net behaviour 9.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One published variant.

    Attributes:
        settings: fields of `TrainConfig`.
        base: the variant that it derives from; None: the trainer itself.
        hooks: hooks that it replaces.
        refused: why it cannot be trained here; empty if it can.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    hooks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    refused: str = ""


def _loss_without_smoothing(self: nnUNetTrainer) -> Any:
    """Return Dice and cross entropy, the Dice without a smoothing term."""
    if self.label_manager.has_regions:
        raise ConfigError(f"{type(self).__name__} does not support regions here; use labels")
    dice = {"batch_dice": self.configuration_manager.batch_dice, "smooth": 0, "do_bg": False, "ddp": self.is_ddp}
    ignore = self.label_manager.ignore_label
    loss = DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    scales = self._get_deep_supervision_scales()
    return loss if scales is None else DeepSupervisionWrapper(loss, deep_supervision_weights(len(scales)))


def _rotation_in_all_planes(self: nnUNetTrainer) -> tuple[Any, bool, Any, Any]:
    """Rotate 3D patches of thick slices in all planes."""
    base: Any = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(self)
    rotation, _, initial, axes = base
    if len(self.configuration_manager.patch_size) == 3:
        rotation = (-_ROTATION, _ROTATION)
    return rotation, False, initial, axes


_EPOCHS: Final = (1, 5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
_NEAREST: Final = "it interpolates labels by the nearest voxel, which Segwright's augmentation does not offer"
_ADAN: Final = "its optimizer is in the package adan-pytorch; return it from your own configure_optimizers"
_BENCHMARK: Final = "it measures nnU-Net's speed on a GPU; use the scripts in benchmarks/"
_AMSGRAD: Final = {"optimizer": "adamw", "optimizer_kwargs": {"amsgrad": True}}
_NO_MIRRORING: Final = {"mirror_axes": ()}

VARIANTS: Final[Mapping[str, Variant]] = {
    **{f"nnUNetTrainer_{count}epoch{'s' * (count > 1)}": Variant(settings={"num_epochs": count}) for count in _EPOCHS},
    **{
        f"nnUNetTrainer_{count}epochs_NoMirroring": Variant(settings={"num_epochs": count, **_NO_MIRRORING})
        for count in (250, 2000, 4000, 8000)
    },
    "nnUNetTrainerNoMirroring": Variant(settings=_NO_MIRRORING),
    "nnUNetTrainer_onlyMirror01": Variant(settings={"mirror_axes": FIRST_TWO_AXES}),
    "nnUNetTrainer_onlyMirror01_1500ep": Variant(settings={"num_epochs": 1500}, base="nnUNetTrainer_onlyMirror01"),
    "nnUNetTrainer_onlyMirror01_DA5": Variant(settings={"augmentation": "strong", "mirror_axes": FIRST_TWO_AXES}),
    "nnUNetTrainer_onlyMirror01_DASegOrd0": Variant(refused=_NEAREST),
    "nnUNetTrainer_DASegOrd0": Variant(refused=_NEAREST),
    "nnUNetTrainer_DASegOrd0_NoMirroring": Variant(refused=_NEAREST),
    "nnUNetTrainerDAOrd0": Variant(refused=_NEAREST),
    "nnUNetTrainer_noDummy2DDA": Variant(
        hooks={"configure_rotation_dummyDA_mirroring_and_inital_patch_size": _rotation_in_all_planes}
    ),
    "nnUNetTrainerNoDA": Variant(settings={"augmentation": "none"}),
    "nnUNetTrainerDA5": Variant(settings={"augmentation": "strong"}),
    "nnUNetTrainerDA5_10epochs": Variant(settings={"num_epochs": 10}, base="nnUNetTrainerDA5"),
    "nnUNetTrainerDA5ord0": Variant(refused=_NEAREST),
    "nnUNetTrainerDA5Segord0": Variant(refused=_NEAREST),
    "nnUNetTrainer_probabilisticOversampling": Variant(settings={"oversample_by_chance": True}),
    "nnUNetTrainer_probabilisticOversampling_033": Variant(
        settings={"oversample_foreground_percent": 0.33}, base="nnUNetTrainer_probabilisticOversampling"
    ),
    "nnUNetTrainer_probabilisticOversampling_010": Variant(
        settings={"oversample_foreground_percent": 0.1}, base="nnUNetTrainer_probabilisticOversampling"
    ),
    "nnUNetTrainerCELoss": Variant(settings={"loss": "ce"}),
    "nnUNetTrainerCELoss_5epochs": Variant(settings={"num_epochs": 5}, base="nnUNetTrainerCELoss"),
    "nnUNetTrainerDiceLoss": Variant(settings={"loss": "dice"}),
    "nnUNetTrainerDiceCELoss_noSmooth": Variant(hooks={"_build_loss": _loss_without_smoothing}),
    "nnUNetTrainerTopk10Loss": Variant(settings={"loss": "topk10"}),
    "nnUNetTrainerTopk10LossLS01": Variant(refused="Segwright's top-k loss has no label smoothing"),
    "nnUNetTrainerDiceTopK10Loss": Variant(settings={"loss": "dice_topk10"}),
    "nnUNetTrainerCosAnneal": Variant(settings={"schedule": "cosine"}),
    "nnUNetTrainer_warmup": Variant(settings={"schedule": "warmup+poly"}),
    "nnUNetTrainerBN": Variant(settings={"norm": "batch"}),
    "nnUNetTrainerNoDeepSupervision": Variant(settings={"enable_deep_supervision": False}),
    "nnUNetTrainerAdam": Variant(settings=_AMSGRAD),
    "nnUNetTrainerAdam1en3": Variant(settings={"initial_lr": 1e-3}, base="nnUNetTrainerAdam"),
    "nnUNetTrainerAdam3en4": Variant(settings={"initial_lr": 3e-4}, base="nnUNetTrainerAdam"),
    "nnUNetTrainerVanillaAdam": Variant(settings={"optimizer": "adam"}),
    "nnUNetTrainerVanillaAdam1en3": Variant(settings={"initial_lr": 1e-3}, base="nnUNetTrainerVanillaAdam"),
    "nnUNetTrainerVanillaAdam3en4": Variant(settings={"initial_lr": 3e-4}, base="nnUNetTrainerVanillaAdam"),
    **{f"nnUNetTrainerAdan{suffix}": Variant(refused=_ADAN) for suffix in ("", "1en3", "3en4", "1en1", "CosAnneal")},
    "nnUNetTrainerBenchmark_5epochs": Variant(refused=_BENCHMARK),
    "nnUNetTrainerBenchmark_5epochs_noDataLoading": Variant(refused=_BENCHMARK),
}
"""By the name of the class."""


def make_class(name: str) -> type[nnUNetTrainer]:
    """Return the class of a variant.

    Raises:
        AttributeError: there is no variant of that name.
    """
    if name not in VARIANTS:
        raise AttributeError(f"module {__name__} has no attribute '{name}'")
    variant = VARIANTS[name]
    parent = nnUNetTrainer if variant.base is None else variant_class(variant.base)
    members: dict[str, Any] = {"__module__": __name__, "__doc__": f"nnU-Net's {name}.", **variant.hooks}
    members[VARIANT_SETTINGS] = {**getattr(parent, VARIANT_SETTINGS), **variant.settings}
    if variant.refused:
        members["__init__"] = _refusing(name, variant.refused)
    return type(name, (parent,), members)


@cache
def variant_class(name: str) -> type[nnUNetTrainer]:
    """Return the class of a variant, the same at every call."""
    return make_class(name)


def settings_of(name: str, dims: int) -> dict[str, Any]:
    """Return the settings of our trainer that a variant stands for.

    Args:
        name: of the variant.
        dims: spatial axes of a patch.

    Raises:
        ConfigError: it cannot be trained, or replaces hooks and so needs a trainer file.
    """
    variant = VARIANTS[name]
    if variant.refused:
        raise ConfigError(f"{name} cannot be trained: {variant.refused}")
    if variant.hooks:
        raise ConfigError(f"{name} replaces parts of the training; derive a class from it in a trainer file")
    return resolve_axes(getattr(variant_class(name), VARIANT_SETTINGS), dims)


def _refusing(name: str, reason: str) -> Callable[..., None]:
    def refuse(self: nnUNetTrainer, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(f"{name} cannot be trained: {reason}")

    return refuse


def __getattr__(name: str) -> type[nnUNetTrainer]:
    """Return the class of a variant by its name, as a file imports it."""
    return variant_class(name)
