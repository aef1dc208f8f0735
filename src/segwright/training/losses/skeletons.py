"""Tubes around the skeletons of label maps, on the CPU, for the skeleton recall loss.

Kirchhoff et al., ECCV 2024, arXiv 2404.03010: all foreground is one mask, its skeleton is dilated, and the tube keeps
the labels that it covers.

The skeleton is found by thinning: voxels of the border are deleted while that changes neither the connected components
nor the holes, but not the ends of curves. The voxels of one subfield (every second one along each axis) do not touch
each other, so they are deleted at once (Bertrand and Aktouf, "Three-dimensional thinning algorithm using subfields",
Vision Geometry III, SPIE 2356, 1994). The neighbours of a voxel decide whether it can be deleted (Bertrand and
Malandain, "A new characterization of three-dimensional simple points", Pattern Recognition Letters 15, 1994).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from segwright.data.labels import Labels

TUBE_RADIUS: Final = 2
"""Dilations of the skeleton by the nearest neighbours along the axes: the paper's diamond of radius 2."""

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def tubes(maps: Tensor, labels: Labels) -> Tensor:
    """Return the tubes of label maps: bool (B, 1, *S), on their device.

    Args:
        maps: label values (B, 1, *S); background and ignored voxels are in no tube.
        labels: of the dataset.
    """
    foreground = maps > 0
    if labels.ignore_label is not None:
        foreground &= maps != labels.ignore_label
    found = np.stack([tube(mask) for mask in foreground[:, 0].cpu().numpy()])
    return torch.from_numpy(found).unsqueeze(1).to(maps.device)


def tube(mask: Mask, radius: int = TUBE_RADIUS) -> Mask:
    """Return the part of a 2D or 3D mask that lies within `radius` voxels of its skeleton."""
    if not mask.any():
        return np.zeros_like(mask)
    inside: Mask = np.asarray(ndimage.binary_dilation(skeletonize(mask), iterations=radius), dtype=bool) & mask
    return inside


def skeletonize(mask: Mask) -> Mask:
    """Return the curve skeleton of a 2D or 3D mask: a subset, one voxel wide, with the same components and holes.

    Foreground voxels that share a corner are connected, background voxels only if they share a face.
    """
    padded = np.pad(mask, 1)
    image, table = padded.reshape(-1), _neighbourhood(mask.ndim)
    steps = table.offsets @ (np.array(padded.strides) // padded.itemsize)
    points = np.flatnonzero(image)
    subfields = _subfields(points, padded.shape)
    while True:
        is_border = ~image[points[:, None] + steps[: 2 * mask.ndim]].all(axis=1)
        for subfield in range(2**mask.ndim):
            candidates = points[is_border & (subfields == subfield)]
            around = _bits(image, candidates, steps)
            is_end = around & (around - 1) == 0  # of a curve, or a single voxel: at most one neighbour
            image[candidates[_are_simple(around, table) & ~is_end]] = False
        remain = image[points]
        if remain.all():
            skeleton: Mask = padded[(slice(1, -1),) * mask.ndim]
            return skeleton
        points, subfields = points[remain], subfields[remain]


class _Neighbourhood(NamedTuple):
    """Neighbours of a voxel, those that share a face first; sets of them are numbers with a bit for each.

    Attributes:
        offsets: (neighbours, axes).
        touching: for each, the set of neighbours that share a corner with it.
        sharing_face: the same for a face.
        faces: the set of those that share a face with the voxel.
        near: the set of those that share a face or, in 3D, an edge with it; in 2D all.
    """

    offsets: Numbers
    touching: tuple[int, ...]
    sharing_face: tuple[int, ...]
    faces: int
    near: int


@lru_cache(maxsize=2)
def _neighbourhood(dims: int) -> _Neighbourhood:
    all_offsets = [offset for offset in product((-1, 0, 1), repeat=dims) if any(offset)]
    offsets = np.array(sorted(all_offsets, key=lambda offset: np.abs(offset).sum()))
    apart = np.abs(offsets[:, None] - offsets[None])
    distance = np.abs(offsets).sum(axis=1)
    return _Neighbourhood(
        offsets=offsets,
        touching=tuple(_set(row) for row in apart.max(axis=2) <= 1),
        sharing_face=tuple(_set(row) for row in apart.sum(axis=2) <= 1),
        faces=_set(distance == 1),
        near=_set(distance <= 2),
    )


def _set(members: Mask) -> int:
    return sum(1 << int(index) for index in np.flatnonzero(members))


def _bits(image: Mask, points: Numbers, steps: Numbers) -> Numbers:
    """Return the set of each point's neighbours in the foreground."""
    found = np.zeros(len(points), dtype=np.int64)
    for index, step in enumerate(steps):
        found |= image[points + step].astype(np.int64) << index
    return found


def _subfields(points: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Return a number for the parity of each point's coordinates."""
    found = np.zeros(len(points), dtype=np.int64)
    for axis, coordinates in enumerate(np.unravel_index(points, shape)):
        found += (coordinates % 2) << axis
    return found


def _are_simple(around: Numbers, table: _Neighbourhood) -> Mask:
    """Return whether voxels with these neighbours in the foreground can be deleted without a change of topology.

    The foreground around such a voxel is one component, and so is the background that shares a face with it.
    """
    background = ~around & table.near
    beside = background & table.faces
    is_connected = _component(around, around & -around, table.touching) == around
    reached = _component(background, beside & -beside, table.sharing_face)
    simple: Mask = is_connected & (around != 0) & (beside != 0) & (beside & ~reached == 0)
    return simple


def _component(members: Numbers, start: Numbers, connected: tuple[int, ...]) -> Numbers:
    """Return the connected component of `start`, one of the members; all are sets."""
    found = start
    while True:
        reached = found
        for index, others in enumerate(connected):
            reached = reached | (-(found >> index & 1) & others)
        reached = reached & members
        if np.array_equal(reached, found):
            return found
        found = reached
