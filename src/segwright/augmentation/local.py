"""Augmentations of the strong recipe: 90-degree rotations, and local changes of intensity (nnU-Net behaviour 10.8).

Labels follow the rotations; all other transforms leave them unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from segwright.augmentation.intensity import MIN_SPREAD, channel_mean
from segwright.augmentation.transform import Params, Range, Samples, column


@dataclass(frozen=True, slots=True, kw_only=True)
class Rot90Transpose:
    """Rotate by multiples of 90 degrees and transpose, among `axes` of equal size; no interpolation."""

    axes: tuple[int, ...]
    rotation_probability: float = 0.5
    transpose_probability: float = 0.5

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Draw `order`, the old axis of each new one, and `flips` of the new axes; both (axes of S,)."""
        dims = len(shape) - 1
        order, flips = np.arange(dims), np.zeros(dims, dtype=bool)
        if rng.random() < self.rotation_probability:
            first, second = rng.choice(self.axes, size=2, replace=False)
            for _ in range(int(rng.integers(4))):
                order[[first, second]] = order[[second, first]]
                flips[[first, second]] = flips[[second, first]]
                flips[first] = not flips[first]
        if rng.random() < self.transpose_probability:
            axes = list(self.axes)
            shuffled = rng.permutation(axes)
            order[axes], flips[axes] = order[shuffled], flips[shuffled]
        return {"order": order, "flips": flips} if flips.any() or (order != np.arange(dims)).any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the rotated and transposed samples."""
        images, labels = torch.empty_like(samples.images), torch.empty_like(samples.labels)
        for index, draw in enumerate(draws):
            order = [0, *(1 + int(axis) for axis in draw["order"])]
            flips = [1 + int(axis) for axis in np.flatnonzero(draw["flips"])]
            images[index] = samples.images[index].permute(order).flip(flips)
            labels[index] = samples.labels[index].permute(order).flip(flips)
        return Samples(images=images, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditiveBrightness:
    """Add a random constant to some channels, in units of the normalised image's standard deviation."""

    probability: float = 0.1
    channel_probability: float = 0.5
    sigma: float = 0.5

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `shift` (C,), 0 in unchanged channels."""
        if rng.random() >= self.probability:
            return None
        chosen = rng.random(shape[0]) < self.channel_probability
        return {"shift": rng.normal(0.0, self.sigma, shape[0]) * chosen} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return images + shift."""
        return replace(samples, images=samples.images + column(draws, "shift", samples.images))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankRectangle:
    """Fill random boxes in some channels with the mean intensity inside them."""

    probability: float = 0.4
    channel_probability: float = 0.5
    max_boxes: int = 4

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Draw `boxes` (C, max_boxes, axes of S, 2) as low and high; unused ones are empty."""
        if rng.random() >= self.probability:
            return None
        size = np.asarray(shape[1:])
        smallest = np.maximum(1, size // 10)
        edges = rng.integers(smallest, np.maximum(size // 3, smallest + 1), size=(shape[0], self.max_boxes, len(size)))
        lows = rng.integers(0, size - edges + 1)
        chosen = rng.random(shape[0]) < self.channel_probability
        counts = rng.integers(1, self.max_boxes + 1, size=shape[0]) * chosen
        boxes = np.stack([lows, lows + edges], axis=-1)
        boxes[np.arange(self.max_boxes) >= counts[:, None]] = 0
        return {"boxes": boxes} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the images with the boxes filled in order."""
        images = samples.images.clone()
        for index, draw in enumerate(draws):
            for channel, boxes in enumerate(draw["boxes"].tolist()):
                for box in boxes:
                    inside = tuple(slice(low, high) for low, high in box)
                    part = images[index, channel][inside]
                    if part.numel():
                        part.copy_(channel_mean(part[None, None]).view(()).expand_as(part))
        return replace(samples, images=images)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianField:
    """A random Gaussian over the patch; `centre` is in units of the patch size and may lie outside."""

    centre: Range = (-0.5, 1.5)
    smallest_part: int = 6

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params:
        """Draw `centre` and `sigma` (C, axes of S) in voxels; sigma is log-uniform.

        It lies between size // `smallest_part`, an integer as in nnU-Net 2.8.1, and size.
        """
        size = np.asarray(shape[1:])
        many = (shape[0], len(size))
        centre = rng.uniform(*self.centre, size=many) * size
        lowest = np.log(np.maximum(size // self.smallest_part, 1))
        return {"centre": centre, "sigma": np.exp(rng.uniform(lowest, np.log(size), size=many))}

    def values(self, draws: Sequence[Params], images: torch.Tensor) -> torch.Tensor:
        """Return the Gaussians (B, C, *S), each with maximum 1, as a product of one factor per axis."""
        result = torch.ones((), device=images.device)
        dims = images.ndim - 2
        for axis in range(dims):
            position = torch.arange(images.shape[2 + axis], device=images.device, dtype=images.dtype)
            centre, sigma = (
                torch.from_numpy(np.stack([draw[name][:, axis] for draw in draws]).astype(np.float32))
                .to(images.device, non_blocking=True)
                .unsqueeze(-1)
                for name in ("centre", "sigma")
            )
            # Normalised in log space, since all values underflow to 0 when the centre is far outside.
            power = -0.5 * ((position - centre) / sigma).square()
            factor = (power - power.amax(-1, keepdim=True)).exp()
            result = result * factor.view(*factor.shape[:2], *(1,) * axis, -1, *(1,) * (dims - 1 - axis))
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class BrightnessGradient:
    """Add a Gaussian of random sign and height to some channels."""

    probability: float = 0.3
    channel_probability: float = 0.5
    height: Range = (1.0, 5.0)
    field: GaussianField = GaussianField()

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Draw the Gaussian and its `height` (C,), 0 in unchanged channels."""
        if rng.random() >= self.probability:
            return None
        chosen = rng.random(shape[0]) < self.channel_probability
        sign = np.where(rng.random(shape[0]) < 0.5, -1.0, 1.0)
        height = rng.uniform(*self.height, size=shape[0]) * sign * chosen
        return {**self.field.draw(rng, shape), "height": height} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return images + height * Gaussian."""
        field = self.field.values(draws, samples.images)
        return replace(samples, images=torch.addcmul(samples.images, column(draws, "height", samples.images), field))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalGamma:
    """Apply gamma locally: blend some channels with their power, weighted by a Gaussian."""

    probability: float = 0.3
    channel_probability: float = 0.5
    darker: Range = (1.5, 4.0)
    brighter: Range = (0.01, 0.8)
    field: GaussianField = GaussianField()

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Draw the Gaussian and `gamma` (C,), 1 in unchanged channels."""
        if rng.random() >= self.probability:
            return None
        chosen = rng.random(shape[0]) < self.channel_probability
        dark = rng.random(shape[0]) < 0.5
        gamma = np.where(dark, rng.uniform(*self.darker, shape[0]), rng.uniform(*self.brighter, shape[0]))
        return {**self.field.draw(rng, shape), "gamma": np.where(chosen, gamma, 1.0)} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the images, scaled to [0, 1], blended with their power and scaled back."""
        images = samples.images
        axes = tuple(range(2, images.ndim))
        low = images.amin(axes, keepdim=True)
        spread = (images.amax(axes, keepdim=True) - low).clamp_min_(MIN_SPREAD)
        scaled = (images - low) / spread
        powered = scaled.pow(column(draws, "gamma", images))
        return replace(samples, images=torch.lerp(scaled, powered, self.field.values(draws, images)) * spread + low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpen:
    """Sharpen some channels by adding a multiple of the negative Laplacian; borders are replicated."""

    probability: float = 0.2
    channel_probability: float = 0.5
    strength: Range = (0.1, 1.0)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `strength` (C,), 0 in unchanged channels."""
        if rng.random() >= self.probability:
            return None
        chosen = rng.random(shape[0]) < self.channel_probability
        return {"strength": rng.uniform(*self.strength, size=shape[0]) * chosen} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return images + strength * sum over axes of (2 x - left - right)."""
        images = samples.images
        dims = images.ndim - 2
        padded = F.pad(images, (1, 1) * dims, mode="replicate")
        edges = torch.zeros_like(images)
        for axis in range(2, images.ndim):
            rest = [slice(None), slice(None), *(slice(1, -1),) * dims]
            for side in (slice(None, -2), slice(2, None)):
                rest[axis] = side
                edges += images - padded[tuple(rest)]
        return replace(samples, images=torch.addcmul(images, column(draws, "strength", images), edges))
