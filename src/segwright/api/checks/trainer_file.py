"""Check before a training with nnU-Net's trainer file that the folds of its model were trained with the same code."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segwright.api.checks.one_model import (
    NETWORK_SETTINGS,
    folds_with_checkpoint,
    recorded,
    require_same_network,
    require_same_plan,
)
from segwright.core.errors import ModelError
from segwright.workspace import NAME_IT

if TYPE_CHECKING:
    from segwright.training.trainer import Trainer

logger = getLogger(__name__)


def require_same_model(trainer: Trainer) -> None:
    """Check that the trainer of a file fits the folds that its model already has, with the plan as the file changes it.

    Raises:
        ModelError: they have another plan or another network, or the code of the network has changed.
    """
    folder = trainer.output_folder
    network = trainer.config.model_dump(include={*NETWORK_SETTINGS}, exclude_defaults=True)
    require_same_plan(folder.parent, trainer.plans, trainer.configuration_name)
    require_same_network(folder.parent, [trainer.fold], network)
    require_same_code(folder, trainer.identity())


def require_same_code(folder: Path, identity: Mapping[str, Any]) -> None:
    """Check that a fold is trained with the code of the others; warn where it does not matter for prediction.

    Args:
        folder: of the fold.
        identity: of its training, with the code of its trainer file.

    Raises:
        ModelError: the code has changed and builds the network.
    """
    from segwright.compat.nnunet.code_copy import CODE, CodeRecord

    now = CodeRecord.model_validate(identity[CODE])
    for other in folds_with_checkpoint(folder.parent):
        document = recorded(other).get(CODE)
        if document is None:
            continue
        before = CodeRecord.model_validate(document)
        changed = ", ".join(before.differences(now))
        if not changed:
            continue
        if other == folder:
            logger.warning("%s: %s changed since it was started; it continues with the new code", folder, changed)
        elif before.builds_network or now.builds_network:
            raise ModelError(
                f"{other}: {changed} changed since it was trained and builds the network, but all folds of a model "
                f"must share one network; restore the code, delete the fold to train it again, or {NAME_IT}"
            )
        else:
            logger.warning("%s: %s changed since it was trained", other, changed)
