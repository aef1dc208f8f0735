"""Name attributes that a trainer file sets where they have no effect, so that none is ignored silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from segwright.compat.nnunet.names.labels import LabelManager
from segwright.compat.nnunet.trainer import differ, nnUNetTrainer, overrides
from segwright.core.errors import ConfigError

BUILT: Final[Mapping[str, str]] = {
    "network": "build_network_architecture",
    "optimizer": "configure_optimizers",
    "lr_scheduler": "configure_optimizers",
    "loss": "_build_loss",
    "inference_allowed_mirroring_axes": "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
    "dataloader_train": "get_dataloaders",
    "dataloader_val": "get_dataloaders",
    "dataset_class": "get_tr_and_val_datasets",
}
"""Attributes that are set from what a hook returns, so that what `__init__` sets is replaced."""

MODEL_SETTINGS: Final = ("initial_lr", "weight_decay", "enable_deep_supervision")
"""Attributes that count until network, optimizer and loss are built."""

LOADER_SETTINGS: Final = ("batch_size", "oversample_foreground_percent", "probabilistic_oversampling")
"""Attributes that count until the loaders are made."""


def replaced_lines(user: nnUNetTrainer, replaced: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a line for each attribute that the base's `__init__` replaced.

    Args:
        user: the object of the trainer file.
        replaced: what the class or its `__init__` had set before, and what the base set.
    """
    where = f"of {type(user).__name__}"
    return [
        f"{name} = {value} {where} is replaced by {new} in the base's __init__, as in nnU-Net; set it after "
        "super().__init__()"
        for name, (value, new) in replaced.items()
    ]


def unused_lines(user: nnUNetTrainer, used: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """Return a line for each attribute that `__init__` changed, though our trainer has its own value.

    Args:
        user: the object of the trainer file.
        used: our values.
        description: `dataset.json` as we use it.
    """
    found, name_of_class = vars(user), type(user).__name__
    lines = [
        f"{name} = {found[name]} of {name_of_class} is seen by the file's own code only; Segwright uses {value}"
        for name, value in used.items()
        if name in found and differ(found[name], value)
    ]
    if type(user.label_manager) is not LabelManager or differ(user.dataset_json, description):
        lines.append(f"labels that {name_of_class} changes are seen by the file's own code only, not by Segwright")
    return lines


class SettingsInUse:
    """Remembers the values with which something was built, and names those that change afterwards.

    Args:
        user: the object of the trainer file, after its `__init__`.
    """

    def __init__(self, user: nnUNetTrainer) -> None:
        self._user = user
        self._early = {name: value for name in BUILT if (value := getattr(user, name, None)) is not None}
        self._used: dict[str, tuple[Any, str]] = {}
        self._patch_size = _patch_size(user)

    def use(self, names: Sequence[str], what: str) -> None:
        """Remember the current values of attributes with which something was built."""
        self._used |= {name: (getattr(self._user, name, None), what) for name in names}

    def replaced_lines(self) -> list[str]:
        """Return a line for each attribute that `__init__` set and that was replaced since."""
        now, name_of_class = vars(self._user), type(self._user).__name__
        return [
            f"{name} that {name_of_class} sets in __init__ is replaced, as in nnU-Net; override {BUILT[name]}"
            for name, value in self._early.items()
            if differ(value, now.get(name))
        ]

    def late_lines(self) -> list[str]:
        """Return a line for each attribute that was changed after its use, once for each value.

        Raises:
            ConfigError: the patch size was changed.
        """
        patch_size, name_of_class = _patch_size(self._user), type(self._user).__name__
        if patch_size != self._patch_size:
            raise ConfigError(
                f"{name_of_class} changes the patch size {self._patch_size} to {patch_size} after __init__, when it is "
                "in use; change it in __init__"
            )
        late = {
            name: (before, now, what)
            for name, (before, what) in self._used.items()
            if differ(before, now := getattr(self._user, name, None))
        }
        self._used |= {name: (now, what) for name, (_, now, what) in late.items()}
        return [
            f"{name} = {now} of {name_of_class} is seen by the file's own code only: {what} was built with {before}; "
            "set it in __init__"
            for name, (before, now, what) in late.items()
        ]


def require_own_datasets(user: nnUNetTrainer) -> None:
    """Check that a dataset class of the file is used.

    Raises:
        ConfigError: nothing would use it.
    """
    made = user.dataset_class
    if made is None or overrides(type(user), "get_tr_and_val_datasets"):
        return
    if not str(made.__module__).startswith("segwright."):
        raise ConfigError(
            f"dataset_class = {made.__name__} of {type(user).__name__} is not used by Segwright's loaders; "
            "override get_tr_and_val_datasets to train with it"
        )


def _patch_size(user: nnUNetTrainer) -> tuple[int, ...]:
    return tuple(int(size) for size in user.configuration_manager.patch_size)
