"""Elastic deformation: a smooth random displacement of voxels (an option; nnU-Net's default has none).

The displacement is a cubic B-spline of random control points. Positions outside the patch are clamped to its border,
so that no voxel beyond the patch is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from segwright.augmentation.compose import SPATIAL, Recipe
from segwright.augmentation.default import default_recipe, patch_geometry
from segwright.augmentation.resampling import SamplingGrid
from segwright.augmentation.transform import Params, Range, Samples

ELASTIC = "elastic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """Deform images and labels together; images are interpolated linearly, labels as in `resampling.resample`.

    Attributes:
        probability: per sample.
        spacing: range, drawn uniformly per sample: distance of the control points as a fraction of the patch size.
        strength: standard deviation of the control points' displacements, as a fraction of the drawn spacing; above 0.2
            the deformation may fold.
        fixed_axes: axes without displacement, for instance across thick slices.
    """

    probability: float = 0.2
    spacing: Range = (0.1, 0.4)
    strength: Range = (0.0, 0.15)
    fixed_axes: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        """Return `spacing`, `strength` and the `seed` of the control points.

        None with probability 1 - `probability`: the sample stays unchanged.
        """
        if rng.random() >= self.probability:
            return None
        drawn = {"spacing": rng.uniform(*self.spacing), "strength": rng.uniform(*self.strength)}
        return {**{name: np.asarray(value) for name, value in drawn.items()}, "seed": np.asarray(rng.integers(2**62))}

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        """Return the deformed samples."""
        size = samples.images.shape[2:]
        images, labels = torch.empty_like(samples.images), torch.empty_like(samples.labels)
        for index, draw in enumerate(draws):
            positions = self._positions(draw, size, samples.images.device)
            if all(position is None for position in positions):
                images[index], labels[index] = samples.images[index], samples.labels[index]
                continue
            grid = SamplingGrid.from_positions(positions, size)
            for channel, image in enumerate(samples.images[index].contiguous()):
                images[index, channel] = grid.interpolate(image)
            for number, label in enumerate(samples.labels[index].contiguous()):
                labels[index, number] = grid.vote(label)
        return Samples(images=images, labels=labels)

    def _positions(self, draw: Params, size: Sequence[int], device: torch.device) -> list[torch.Tensor | None]:
        """Return, per axis, the position (float voxel) that each voxel is read from; None for a fixed axis."""
        spacing, strength = float(draw["spacing"]), float(draw["strength"])
        operators = [
            torch.from_numpy(spline_operator(extent, spacing)).to(device, non_blocking=True) for extent in size
        ]
        rng = np.random.default_rng(int(draw["seed"]))
        positions: list[torch.Tensor | None] = []
        for axis, extent in enumerate(size):
            control = rng.normal(0.0, strength * spacing * extent, [operator.shape[1] for operator in operators])
            if axis in self.fixed_axes or extent == 1:
                positions.append(None)
                continue
            shift = torch.from_numpy(control.astype(np.float32)).to(device, non_blocking=True)
            for operator in operators:  # each product brings the next axis to the front
                shift = torch.tensordot(shift, operator, dims=([0], [1]))
            voxel = torch.arange(extent, device=device, dtype=torch.float32)
            positions.append((shift + voxel.view(-1, *(1,) * (len(size) - 1 - axis))).clamp_(0, extent - 1))
        return positions


def spline_operator(size: int, spacing: float) -> npt.NDArray[np.float32]:
    """Return the basis matrix (size, control points) float32 of a uniform cubic B-spline.

    The control points are `size / round(1 / spacing)` voxels apart.
    """
    intervals = max(1, round(1 / spacing))
    position = (np.arange(size) + 0.5) / size * intervals
    distance = np.abs(position[:, None] - np.arange(-1, intervals + 2)[None, :])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)


def elastic_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return the default recipe with elastic deformation after rotation and scaling."""
    geometry = patch_geometry(patch_size)
    recipe = default_recipe(patch_size, masked_channels=masked_channels)
    return recipe.insert_after(SPATIAL, ELASTIC, Elastic(fixed_axes=(0,) if geometry.dummy_2d else ()))
