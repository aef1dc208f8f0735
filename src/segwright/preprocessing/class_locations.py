"""Class locations: a fixed random sample of voxels per class, on which patches are centred (nnU-Net behaviour 6.5)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.data.labels import ClassKey

MIN_VOXELS = 10000
"""All voxels of classes with up to this many are kept (nnU-Net's value)."""
MIN_SHARE = 0.01
"""Minimum fraction kept of a larger class (nnU-Net's value)."""

_SEED = 1234


def class_locations(
    label: npt.NDArray[np.integer[Any]], keys: Sequence[ClassKey]
) -> dict[ClassKey, npt.NDArray[np.int32]]:
    """Sample the voxels of each class, identical to nnU-Net 2.8.1 in choice and order.

    Args:
        label: (1, *S) preprocessed label map.
        keys: labels, or tuples of labels for regions, see `Labels.class_keys`.

    Returns:
        Per key the voxel coordinates (n, 3); n is 0 if the class is absent.
    """
    labels = label[0].reshape(-1)
    labels_of = {key: key if isinstance(key, tuple) else (key,) for key in keys}
    positions = {value: np.flatnonzero(labels == value) for value in sorted(set().union(*labels_of.values()))}
    random = np.random.RandomState(_SEED)
    result = {}
    for key, values in labels_of.items():
        parts = [positions[value] for value in values]
        total = sum(len(part) for part in parts)
        voxels = np.zeros(0, dtype=np.intp)
        if total:
            count = max(min(MIN_VOXELS, total), ceil(MIN_SHARE * total))
            chosen = random.permutation(total)[:count]
            voxels = (parts[0] if len(parts) == 1 else np.concatenate(parts))[chosen]
        coordinates = np.unravel_index(voxels, label.shape[1:])
        result[key] = np.stack(coordinates, axis=1).astype(np.int32)
    return result
