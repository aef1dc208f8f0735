"""Crop a case to its non-zero region, for fingerprint and preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from segwright.core.boxes import Box, crop, nonzero_box
from segwright.data.labels import OUTSIDE

_THINNEST_WITH_HOLES = 3


def content_box(image: npt.NDArray[np.float32]) -> Box:
    """Return the box that holds every voxel of `image` (C, *S) with a non-zero channel; all of it if there is none."""
    # Plane by plane: a mask of the whole image takes a quarter of its memory.
    has_content = np.zeros(image.shape[1], dtype=bool)
    footprint = np.zeros(image.shape[2:], dtype=bool)
    for index in range(image.shape[1]):
        plane = _nonzero_mask(image[:, index])
        has_content[index] = plane.any()
        footprint |= plane
    return (*nonzero_box(has_content), *nonzero_box(footprint))


def crop_to_nonzero(
    image: npt.NDArray[np.float32], label: npt.NDArray[Any] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16], Box]:
    """Crop image and label to the non-zero region and mark voxels outside its mask.

    nnU-Net behaviour 3.1: the mask is every voxel with a non-zero channel, holes filled (6-connected).

    Args:
        image: (C, *S).
        label: (1, *S), or None at inference.

    Returns:
        Cropped image; cropped label (1, *S) with -1 where it is 0 outside the mask (without a label: 0 inside the
        mask, -1 outside); the half-open box.
    """
    mask = _nonzero_mask(image)
    box = nonzero_box(mask)
    # Holes are searched inside the box only: whatever is background on a face of the box is connected to the outside.
    outside = ~_fill_holes(crop(mask, box))
    if label is None:
        marked = np.zeros((1, *outside.shape), dtype=np.int16)
    else:
        marked = crop(label, box).astype(np.int16)
        outside &= marked[0] == 0
    marked[0][outside] = OUTSIDE
    return crop(image, box), marked, box


def _nonzero_mask(image: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def _fill_holes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Fill background components that touch no face of the array; equals scipy's binary_fill_holes, in one pass."""
    if mask.all() or min(mask.shape) < _THINNEST_WITH_HOLES:
        return mask
    components: npt.NDArray[np.signedinteger[Any]]
    components, count = scipy.ndimage.label(~mask)
    is_hole = np.ones(count + 1, dtype=bool)
    is_hole[0] = False
    for axis in range(mask.ndim):
        for face in (0, -1):
            is_hole[np.unique(components.take(face, axis=axis))] = False
    if is_hole.any():
        mask = mask | is_hole[components]
    return mask
