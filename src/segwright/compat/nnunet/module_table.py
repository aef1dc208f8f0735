"""The table of stand-in modules: which name of which module of nnU-Net's packages lives where here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_HERE: Final = "segwright.compat.nnunet"
_TRAINER: Final = "nnunetv2.training.nnUNetTrainer"


def _of(module: str, *names: str) -> dict[str, str]:
    """Return the reference `module:name` of each name of a module of this package."""
    return {name: f"{_HERE}.{module}:{name}" for name in names}


_VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "data_augmentation.nnUNetTrainerDA5": (
        "nnUNetTrainerDA5", "nnUNetTrainerDA5ord0", "nnUNetTrainerDA5Segord0", "nnUNetTrainerDA5_10epochs",
    ),
    "data_augmentation.nnUNetTrainerDAOrd0": (
        "nnUNetTrainerDAOrd0", "nnUNetTrainer_DASegOrd0", "nnUNetTrainer_DASegOrd0_NoMirroring",
    ),
    "data_augmentation.nnUNetTrainerNoDA": ("nnUNetTrainerNoDA",),
    "data_augmentation.nnUNetTrainerNoMirroring": (
        "nnUNetTrainerNoMirroring", "nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainer_onlyMirror01_DASegOrd0",
    ),
    "data_augmentation.nnUNetTrainer_noDummy2DDA": ("nnUNetTrainer_noDummy2DDA",),
    "data_augmentation.nnUNetTrainer_onlyMirror01_DA5": ("nnUNetTrainer_onlyMirror01_DA5",),
    "benchmarking.nnUNetTrainerBenchmark_5epochs": ("nnUNetTrainerBenchmark_5epochs",),
    "benchmarking.nnUNetTrainerBenchmark_5epochs_noDataLoading": ("nnUNetTrainerBenchmark_5epochs_noDataLoading",),
    "loss.nnUNetTrainerCELoss": ("nnUNetTrainerCELoss", "nnUNetTrainerCELoss_5epochs"),
    "loss.nnUNetTrainerDiceLoss": ("nnUNetTrainerDiceLoss", "nnUNetTrainerDiceCELoss_noSmooth"),
    "loss.nnUNetTrainerTopkLoss": (
        "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01", "nnUNetTrainerDiceTopK10Loss",
    ),
    "lr_schedule.nnUNetTrainerCosAnneal": ("nnUNetTrainerCosAnneal",),
    "lr_schedule.nnUNetTrainer_warmup": ("nnUNetTrainer_warmup",),
    "network_architecture.nnUNetTrainerBN": ("nnUNetTrainerBN",),
    "network_architecture.nnUNetTrainerNoDeepSupervision": ("nnUNetTrainerNoDeepSupervision",),
    "optimizer.nnUNetTrainerAdam": (
        "nnUNetTrainerAdam", "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4", "nnUNetTrainerVanillaAdam",
        "nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4",
    ),
    "optimizer.nnUNetTrainerAdan": (
        "nnUNetTrainerAdan", "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdan1en1",
        "nnUNetTrainerAdanCosAnneal",
    ),
    "sampling.nnUNetTrainer_probabilisticOversampling": (
        "nnUNetTrainer_probabilisticOversampling", "nnUNetTrainer_probabilisticOversampling_033",
        "nnUNetTrainer_probabilisticOversampling_010",
    ),
    "training_length.nnUNetTrainer_Xepochs": (
        "nnUNetTrainer_1epoch", "nnUNetTrainer_5epochs", "nnUNetTrainer_10epochs", "nnUNetTrainer_20epochs",
        "nnUNetTrainer_50epochs", "nnUNetTrainer_100epochs", "nnUNetTrainer_250epochs", "nnUNetTrainer_500epochs",
        "nnUNetTrainer_750epochs", "nnUNetTrainer_2000epochs", "nnUNetTrainer_4000epochs",
        "nnUNetTrainer_8000epochs",
    ),
    "training_length.nnUNetTrainer_Xepochs_NoMirroring": (
        "nnUNetTrainer_250epochs_NoMirroring", "nnUNetTrainer_2000epochs_NoMirroring",
        "nnUNetTrainer_4000epochs_NoMirroring", "nnUNetTrainer_8000epochs_NoMirroring",
    ),
}  # fmt: skip
"""Published variants by the module that defines them (nnU-Net behaviour 8.10)."""

VARIANT_NAMES: Final = tuple(name for names in _VARIANTS.values() for name in names)

MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    "nnunetv2": {},
    "nnunetv2.paths": {},
    f"{_TRAINER}.nnUNetTrainer": _of("trainer", "nnUNetTrainer"),
    **{f"{_TRAINER}.variants.{module}": _of("variants", *names) for module, names in _VARIANTS.items()},
}
"""Module name to the references of its names; every parent of a module is one as well."""
