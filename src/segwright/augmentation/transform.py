"""The transform protocol: parameters drawn for one sample, applied to a batch of samples.

Shape letters: B samples, C image channels, L label maps, S spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Params = Mapping[str, npt.NDArray[np.generic]]
"""Random parameters of one transform for one sample; a name has the same array shape in every sample."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Images (B, C, *S) float32 and label maps (B, L, *S) int16; label -1 is padding or outside the nonzero mask."""

    images: torch.Tensor
    labels: torch.Tensor


class Transform(Protocol):
    """A random transform in two steps, so that parameters can be tested, shown and repeated without data."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Draw the parameters for one sample of `shape` (C, *S); None leaves the sample unchanged."""
        ...

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the transformed samples, one `Params` each; a result never depends on the other samples."""
        ...


def column(draws: Sequence[Params], name: str, images: torch.Tensor) -> torch.Tensor:
    """Stack one parameter of all samples, shaped to broadcast over `images` (B, C, *S).

    A scalar per sample becomes (B, 1, 1...), a value per channel (B, C, 1...).
    """
    values = np.stack([np.asarray(draw[name], dtype=np.float32) for draw in draws])
    values = values.reshape(len(draws), -1, *(1,) * (images.ndim - 2))
    return torch.from_numpy(values).to(images.device, non_blocking=True)


def draw_around_one(rng: np.random.Generator, limits: Range, size: int) -> npt.NDArray[np.float64]:
    """Draw `size` factors, below one and above one equally often and uniform on each side.

    nnU-Net behaviour 10.3: U(low, 1) with probability 0.5 where low < 1, else U(max(low, 1), high).
    """
    low, high = limits
    below = (rng.random(size) < 0.5) & (low < 1)
    return np.where(below, rng.uniform(low, max(low, 1.0), size), rng.uniform(max(low, 1.0), high, size))
