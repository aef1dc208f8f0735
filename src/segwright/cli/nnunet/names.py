"""Names that nnU-Net's options take: defaults, folds, checkpoints, devices."""

from __future__ import annotations

from typing import Final

from segwright.cli.nnunet.options import Values
from segwright.core.errors import ConfigError, did_you_mean

TRAINER: Final = "nnUNetTrainer"
PLANS: Final = "nnUNetPlans"
CHECKPOINT: Final = "checkpoint_final.pth"
_KINDS: Final = ("final", "best", "latest")


def checkpoint_kind(name: str) -> str:
    """Return which checkpoint a file name means: final, best or latest.

    Raises:
        ConfigError: it is another name.
    """
    kinds = {CHECKPOINT.replace("final", kind): kind for kind in _KINDS}
    if name not in kinds:
        raise ConfigError(f"-chk {name}: unknown checkpoint{did_you_mean(name, kinds)}")
    return kinds[name]


def fold_of(text: str) -> int | str:
    """Return a fold: a number or `all`.

    Raises:
        ConfigError: it is neither.
    """
    if text == "all":
        return text
    if not text.isdecimal():
        raise ConfigError(f"fold '{text}': expected a number such as 0, or all")
    return int(text)


def device_of(arguments: Values) -> str:
    """Return the device of a command; a GPU if there is one by default.

    Raises:
        ConfigError: it has the index of a GPU.
    """
    device = arguments.text("-device")
    if ":" in device:
        raise ConfigError(f"-device {device}: give no index; CUDA_VISIBLE_DEVICES decides which GPU is used")
    return device
