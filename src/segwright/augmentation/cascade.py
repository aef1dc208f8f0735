"""Augmentation of the previous stage's label map, an input of the cascade's second stage (nnU-Net behaviour 10.5).

The first stage makes fewer errors on its training data than on new data; random binary operators and removed
components keep the second stage from copying its input.

Shape letters: B samples, C image channels, L foreground labels, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from segwright.augmentation.compose import RngFactory
from segwright.augmentation.transform import Params, Range, Samples

OPERATOR: Final = "cascade_operator"
REMOVAL: Final = "cascade_removal"
OPERATORS: Final = ("dilation", "erosion", "closing", "opening")

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryOperators:
    """Dilate, erode, close or open channels with a ball (a disk in 2D) of random radius (voxels).

    `probability` is per sample, `per_label` that of each label in such a sample.
    """

    probability: float = 0.4
    per_label: float = 0.5
    radius: Range = (1.0, 8.0)

    def draw(self, rng: np.random.Generator, num_labels: int) -> Params | None:
        """Return `order`, `chosen`, `operator` and `radius`, each (L,), or None to leave the sample unchanged."""
        if rng.random() >= self.probability:
            return None
        return {
            "order": rng.permutation(num_labels),
            "chosen": rng.random(num_labels) < self.per_label,
            "operator": rng.integers(len(OPERATORS), size=num_labels),
            "radius": rng.uniform(*self.radius, size=num_labels),
        }

    def apply(self, masks: Masks, draw: Params) -> Masks:
        """Return the changed masks (L, *S); a voxel that a label gains is removed from the others."""
        result: Masks = masks.copy()
        for label in np.asarray(draw["order"]):
            if draw["chosen"][label]:
                before = result[label].copy()
                after = apply_operator(before, OPERATORS[int(draw["operator"][label])], float(draw["radius"][label]))
                result[:, after & ~before] = False
                result[label] = after
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRemoval:
    """Remove one connected component (full connectivity) of a label, smaller than `largest_share` of the patch.

    `probability` is per sample, `per_label` that of each label in such a sample.
    """

    probability: float = 0.2
    per_label: float = 0.5
    largest_share: float = 0.15

    def draw(self, rng: np.random.Generator, num_labels: int) -> Params | None:
        """Return `chosen` and `pick` (0 to 1), each (L,), or None to leave the sample unchanged."""
        if rng.random() >= self.probability:
            return None
        return {"chosen": rng.random(num_labels) < self.per_label, "pick": rng.random(num_labels)}

    def apply(self, masks: Masks, draw: Params) -> Masks:
        """Return the masks (L, *S) without the drawn components."""
        result: Masks = masks.copy()
        for label in np.flatnonzero(draw["chosen"]):
            components, _ = ndimage.label(result[label], structure=np.ones((3,) * (masks.ndim - 1)))
            sizes = np.bincount(components.ravel())
            (candidates,) = np.nonzero(sizes < self.largest_share * components.size)
            candidates = candidates[(candidates > 0) & (sizes[candidates] > 0)]
            if len(candidates):
                picked = candidates[int(float(draw["pick"][label]) * len(candidates))]
                result[label] &= components != picked
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousStage:
    """One-hot encode the second label map of samples as input channels, after optional transforms.

    Attributes:
        labels: foreground labels, one channel each.
        operators: applied first.
        removal: applied second.
    """

    labels: tuple[int, ...]
    operators: BinaryOperators | None = None
    removal: ComponentRemoval | None = None

    def draw(self, rng_for: RngFactory) -> dict[str, Params]:
        """Draw the parameters of one sample, without transforms that are not applied."""
        drawn: dict[str, Params | None] = {}
        if self.operators is not None:
            drawn[OPERATOR] = self.operators.draw(rng_for(OPERATOR), len(self.labels))
        if self.removal is not None:
            drawn[REMOVAL] = self.removal.draw(rng_for(REMOVAL), len(self.labels))
        return {name: draw for name, draw in drawn.items() if draw is not None}

    def append(self, samples: Samples, draws: Sequence[Mapping[str, Params]]) -> Tensor:
        """Return images (B, C + L, *S): those of `samples`, then the one-hot labels of the previous stage."""
        maps = samples.labels[:, 1]
        channels = torch.stack([maps == label for label in self.labels], dim=1)
        for index, draw in enumerate(draws):
            masks: Masks | None = None
            if self.operators is not None and OPERATOR in draw:
                masks = self.operators.apply(channels[index].cpu().numpy(), draw[OPERATOR])
            if self.removal is not None and REMOVAL in draw:
                masks = self.removal.apply(channels[index].cpu().numpy() if masks is None else masks, draw[REMOVAL])
            if masks is not None:
                channels[index] = torch.from_numpy(masks).to(channels.device, non_blocking=True)
        return torch.cat([samples.images, channels.to(samples.images.dtype)], dim=1)


def apply_operator(mask: Masks, operator: str, radius: float) -> Masks:
    """Apply one of `OPERATORS` to `mask` (*S); the patch border neither adds nor erodes voxels."""
    occupied = [np.flatnonzero(mask.any(axis=tuple(o for o in range(mask.ndim) if o != a))) for a in range(mask.ndim)]
    if not len(occupied[0]):
        return np.zeros(mask.shape, dtype=bool)
    element = ball(radius, mask.ndim)
    reach = element.shape[0]  # twice the half width: a closing dilates, then erodes
    box = tuple(slice(max(int(hits[0]) - reach, 0), int(hits[-1]) + 1 + reach) for hits in occupied)
    part: Masks = mask[box]
    steps = {"dilation": "d", "erosion": "e", "closing": "de", "opening": "ed"}[operator]
    for step in steps:
        part = _dilated(part, element) if step == "d" else ~_dilated(~part, element)
    result: Masks = np.zeros_like(mask)
    result[box] = part
    return result


def ball(radius: float, dims: int) -> Masks:
    """Return a structuring element of `radius`, equal to scikit-image's ball (3D) or disk (2D).

    A ball's points divide the diameter evenly, floor(2 * radius + 1) along an axis; a disk's are one voxel apart, so a
    disk whose radius is no multiple of 1/2 is off-centre. Rounding decides about points on a ball's surface; as in
    scikit-image, the last axis is added first.

    >>> ball(1.0, 2).astype(int).tolist()
    [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    """
    count = int(2 * radius + 1)
    points = np.arange(-radius, radius + 1) if dims == 2 else np.arange(count) * (2 * radius / (count - 1)) - radius
    distance = np.zeros(1)
    for axis in reversed(range(dims)):
        distance = distance + (points**2).reshape(-1, *(1,) * (dims - 1 - axis))
    return np.asarray(distance <= radius**2)


def _dilated(mask: Masks, element: Masks) -> Masks:
    """Dilate by a correlation in Fourier space, whose cost does not depend on the element's size.

    The element may be asymmetric, from rounding or a disk's fractional radius; one of even width is shifted by half a
    voxel to the left.
    """
    shape = [size + width - 1 for size, width in zip(mask.shape, element.shape, strict=True)]
    padded = [_fast_length(size) for size in shape]
    arrays = (mask, np.flip(element))
    spectra = [torch.fft.rfftn(torch.from_numpy(array.astype(np.float32)), s=padded) for array in arrays]
    counts = torch.fft.irfftn(spectra[0] * spectra[1], s=padded).numpy()
    same = tuple(slice(width // 2, width // 2 + size) for size, width in zip(mask.shape, element.shape, strict=True))
    return np.asarray(counts[same] > 0.5)


def _fast_length(size: int) -> int:
    """Return the next length with small prime factors only, for which the FFT is fast."""
    lengths = sorted({2**a * 3**b * 5**c for a in range(12) for b in range(4) for c in range(3)})
    return next((high for low, high in pairwise([0, *lengths]) if low < size <= high), size)
