"""What every augmentation is: parameters drawn for one sample, applied to a batch of samples.

Shape letters: B samples, C image channels, L label maps, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Draw = Mapping[str, npt.NDArray[np.generic]]
"""Drawn parameters of one transform for one sample; each name has the same array shape in every sample."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Images (B, C, *S) float32 and label maps (B, L, *S) int16; label -1 is padding or outside the nonzero mask."""

    images: torch.Tensor
    labels: torch.Tensor


class Transform(Protocol):
    """A random change of a sample in two steps, so that draws can be tested, shown and repeated without data."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Draw | None:
        """Return parameters for one sample of `shape` (C, *S), or None to leave it as it is."""
        ...

    def apply(self, samples: Samples, draws: Sequence[Draw]) -> Samples:
        """Return the changed samples, one draw each; a sample's result never depends on its neighbours."""
        ...


def column(draws: Sequence[Draw], name: str, images: torch.Tensor) -> torch.Tensor:
    """Return one parameter of all samples, ready to broadcast over `images` (B, C, *S).

    A scalar per sample becomes (B, 1, 1...), a value per channel (B, C, 1...).
    """
    values = np.stack([np.asarray(draw[name], dtype=np.float32) for draw in draws])
    values = values.reshape(len(draws), -1, *(1,) * (images.ndim - 2))
    return torch.from_numpy(values).to(images.device, non_blocking=True)


def draw_around_one(rng: np.random.Generator, limits: Range, size: int) -> npt.NDArray[np.float64]:
    """Draw `size` factors, below and above one equally often, uniform on each side.

    nnU-Net behaviour 10.3: U(low, 1) with probability 0.5 where low < 1, else U(max(low, 1), high).
    """
    low, high = limits
    below = (rng.random(size) < 0.5) & (low < 1)
    return np.where(below, rng.uniform(low, max(low, 1.0), size), rng.uniform(max(low, 1.0), high, size))
