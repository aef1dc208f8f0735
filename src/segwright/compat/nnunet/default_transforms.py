"""nnU-Net's default transforms, for trainer files that add their own to them."""

from __future__ import annotations

from typing import Any

from segwright.core.errors import ConfigError


def training_transforms(*args: Any, **kwargs: Any) -> Any:
    """Return nnU-Net's default transforms."""
    raise ConfigError("get_training_transforms of nnUNetTrainer is not supported yet")


def validation_transforms(*args: Any, **kwargs: Any) -> Any:
    """Return nnU-Net's transforms of validation batches."""
    raise ConfigError("get_validation_transforms of nnUNetTrainer is not supported yet")
