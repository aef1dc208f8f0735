"""Intensity augmentations: noise, blur, brightness, contrast, low resolution and gamma.

Defaults: nnU-Net behaviour 10.1, 10.3. Labels do not change. Each transform keeps shapes,
dtype and device; nothing is copied from the device to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from segwright.augmentation.operators import Operator, along_axes, gaussian_operator, low_resolution_operator
from segwright.augmentation.transform import Params, Range, Samples, column, draw_around_one

MIN_SPREAD = 1e-7
"""Lower bound of a divisor (range or standard deviation), so that a constant patch stays finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """Add white noise; one standard deviation for all channels, one field per channel."""

    probability: float = 0.1
    sigma: Range = (0.0, 0.1)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `sigma` and the `seed` of the noise field."""
        if rng.random() >= self.probability:
            return None
        return {"sigma": np.asarray(rng.uniform(*self.sigma)), "seed": np.asarray(rng.integers(2**62))}

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return images + sigma * N(0, 1)."""
        images = samples.images
        fields = []
        for draw in draws:
            source = torch.Generator(device=images.device).manual_seed(int(draw["seed"]))
            fields.append(torch.randn(images.shape[1:], generator=source, device=images.device))
        return replace(samples, images=torch.addcmul(images, column(draws, "sigma", images), torch.stack(fields)))


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianBlur:
    """Blur some channels; one sigma (voxels) per channel, and per axis unless `sigma_per_axis` is off."""

    probability: float = 0.2
    channel_probability: float = 0.5
    sigma: Range = (0.5, 1.0)
    sigma_per_axis: bool = True

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `sigma` (C, axes), 0 in the channels that are not blurred."""
        if rng.random() >= self.probability:
            return None
        chosen = rng.random(shape[0]) < self.channel_probability
        axes = len(shape) - 1
        sigma = rng.uniform(*self.sigma, size=(shape[0], axes if self.sigma_per_axis else 1)) * chosen[:, None]
        return {"sigma": np.repeat(sigma, axes // sigma.shape[1], axis=1)} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the images with the chosen channels blurred, borders reflected."""
        sigma = np.concatenate([np.asarray(draw["sigma"], dtype=np.float64) for draw in draws])  # (B * C, axes)
        rows = np.flatnonzero(sigma.any(axis=1))
        operators = [
            np.stack([gaussian_operator(size, float(sigma[row, axis])) for row in rows])
            for axis, size in enumerate(samples.images.shape[2:])
        ]
        return replace(samples, images=_filter_channels(samples.images, rows.tolist(), operators))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowResolution:
    """Simulate low resolution: downsample channels by a random factor, interpolate back; not along `fixed_axes`."""

    probability: float = 0.25
    channel_probability: float = 0.5
    factor: Range = (0.5, 1.0)
    fixed_axes: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `factor` (C,), 1 in unchanged channels."""
        if rng.random() >= self.probability:
            return None
        chosen = rng.random(shape[0]) < self.channel_probability
        factor = np.where(chosen, rng.uniform(*self.factor, size=shape[0]), 1.0)
        return {"factor": factor} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the images with the chosen channels sampled at round(size * factor) voxels and interpolated back."""
        factor = np.concatenate([np.asarray(draw["factor"], dtype=np.float64) for draw in draws])  # (B * C,)
        rows = np.flatnonzero(factor != 1.0)
        operators = [
            None
            if axis in self.fixed_axes
            else np.stack([low_resolution_operator(size, max(round(size * float(factor[row])), 1)) for row in rows])
            for axis, size in enumerate(samples.images.shape[2:])
        ]
        return replace(samples, images=_filter_channels(samples.images, rows.tolist(), operators))


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """Multiply each channel by its own random factor."""

    probability: float = 0.15
    factor: Range = (0.75, 1.25)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `factor` (C,)."""
        if rng.random() >= self.probability:
            return None
        return {"factor": draw_around_one(rng, self.factor, shape[0])}

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return images * factor."""
        return replace(samples, images=samples.images * column(draws, "factor", samples.images))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Scale the contrast of some channels about their mean, optionally clamped to the previous range."""

    probability: float = 0.15
    channel_probability: float = 1.0
    factor: Range = (0.75, 1.25)
    clamp_probability: float = 1.0

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `factor` (C,), 1 in unchanged channels, and `clamped`."""
        if rng.random() >= self.probability:
            return None
        factor = draw_around_one(rng, self.factor, shape[0])
        chosen = rng.random(shape[0]) < self.channel_probability
        clamped = np.asarray(rng.random() < self.clamp_probability)
        return {"factor": np.where(chosen, factor, 1.0), "clamped": clamped} if chosen.any() else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return (images - mean) * factor + mean, clamped to the channel's range for samples with `clamped`."""
        images = samples.images
        axes = tuple(range(2, images.ndim))
        factor = column(draws, "factor", images)
        stretched = torch.addcmul(channel_mean(images) * (1 - factor), images, factor)
        clamped = [bool(draw.get("clamped", True)) for draw in draws]
        if not any(clamped):
            return replace(samples, images=stretched)
        # Separate amin and amax are twenty times faster on the CPU than aminmax along an axis.
        low, high = images.amin(axes, True), images.amax(axes, True)
        if not all(clamped):
            slack = column([{"slack": np.asarray(0.0 if each else np.inf)} for each in clamped], "slack", images)
            low, high = low - slack, high + slack
        return replace(samples, images=stretched.clamp_(low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """Raise each channel, scaled to [0, 1], to a random power, then restore its mean and standard deviation."""

    probability: float = 0.3
    gamma: Range = (0.7, 1.5)
    inverted: bool = False

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `gamma` (C,)."""
        if rng.random() >= self.probability:
            return None
        return {"gamma": draw_around_one(rng, self.gamma, shape[0])}

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the gamma-corrected images; with `inverted`, the curve is applied to the negated image."""
        images = samples.images
        axes = tuple(range(2, images.ndim))
        low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        spread = (high - low).clamp_min_(MIN_SPREAD)
        mean = channel_mean(images)
        # Mean and deviation are restored below, so the curve stays in [0, 1]; negation swaps both ends.
        curve = ((high - images) if self.inverted else (images - low)).div_(spread).pow_(column(draws, "gamma", images))
        curve -= channel_mean(curve)
        gain = _deviation(images - mean) / _deviation(curve).clamp_min_(MIN_SPREAD)
        return replace(samples, images=torch.addcmul(mean, curve, -gain if self.inverted else gain))


def channel_mean(images: torch.Tensor) -> torch.Tensor:
    """Return the mean of each channel (B, C, 1...), bitwise independent of batch size and number of threads.

    Planes are summed first, then their sums: torch splits a single long sum by the number of threads, but not the rows
    of several.
    """
    planes = images.flatten(3).sum(-1)
    return (planes.sum(-1) / images[0, 0].numel()).view(*images.shape[:2], *(1,) * (images.ndim - 2))


def _deviation(centred: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of values whose mean is 0; much faster than `torch.std` on the CPU."""
    planes = torch.linalg.vector_norm(centred.flatten(3), dim=-1)
    length: torch.Tensor = torch.linalg.vector_norm(planes, dim=-1) / math.sqrt(centred[0, 0].numel())
    return length.view(*centred.shape[:2], *(1,) * (centred.ndim - 2))


def _filter_channels(images: torch.Tensor, rows: list[int], operators: Sequence[Operator | None]) -> torch.Tensor:
    """Return `images` (B, C, *S) with the volumes `rows` (of B * C) filtered by operators (rows, size, size)."""
    volumes = images.flatten(0, 1)
    matrices = [
        None if item is None else torch.from_numpy(item).to(images.device, non_blocking=True) for item in operators
    ]
    if len(rows) == len(volumes):
        return along_axes(volumes, matrices).view_as(images)
    index = torch.tensor(rows).to(images.device, non_blocking=True)
    filtered = along_axes(volumes.index_select(0, index), matrices)
    return volumes.index_copy(0, index, filtered).view_as(images)
