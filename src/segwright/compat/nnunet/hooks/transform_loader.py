"""Sample-wise transforms of a trainer file, applied to our patches; needs batchgeneratorsv2."""

from __future__ import annotations

from typing import Any

from segwright.compat.nnunet.trainer import nnUNetTrainer
from segwright.core.errors import ConfigError
from segwright.training.trainer import Trainer


def transform_loaders(run: Trainer, user: nnUNetTrainer) -> tuple[Any, Any]:
    """Return loaders that apply the file's transforms."""
    raise ConfigError(f"{type(user).__name__}: get_training_transforms is not supported yet")
