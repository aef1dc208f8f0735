"""What identifies a model: predictions of models with equal hashes are interchangeable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segwright.core.files.hashing import content_hash, file_hash
from segwright.data.description import DatasetDescription
from segwright.data.plan import Plan


def model_hash(weights: Sequence[Path], plan: Plan, description: DatasetDescription, configuration: str) -> str:
    """Return a hash of all that decides the labels of a model folder.

    Args:
        weights: files of the weights of its folds, in order.
        plan: its plan.
        description: its dataset.json.
        configuration: its configuration.
    """
    return content_hash([[file_hash(file) for file in weights], plan.to_json(), description.raw(), configuration])
