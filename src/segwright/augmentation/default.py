"""Build the default augmentation recipe; derive rotation range and mirror axes from the patch shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segwright.augmentation.compose import Recipe, Step
from segwright.augmentation.intensity import Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from segwright.augmentation.spatial import Affine, MaskOutside, Mirror

ANISOTROPIC_PATCH = 3
"""A 3D patch whose longest edge exceeds its first by this factor is rotated in-plane only (nnU-Net behaviour 9.4)."""

ELONGATED_PATCH = 1.5
"""A 2D patch longer than this many times its short edge is rotated by at most 15 degrees (nnU-Net behaviour 9.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGeometry:
    """Rotation range (radians), whether to rotate in-plane only, and mirrored axes of a patch shape."""

    rotation: tuple[float, float]
    dummy_2d: bool
    mirror_axes: tuple[int, ...]


def patch_geometry(patch_size: Sequence[int]) -> PatchGeometry:
    """Return the rotation range and mirror axes for a patch size (nnU-Net behaviour 9.4)."""
    longest = max(patch_size)
    dummy_2d = len(patch_size) == 3 and longest / patch_size[0] > ANISOTROPIC_PATCH
    if len(patch_size) == 2:
        degrees = 15.0 if longest / min(patch_size) > ELONGATED_PATCH else 180.0
    else:
        degrees = 180.0 if dummy_2d else 30.0
    limit = math.radians(degrees)
    return PatchGeometry(rotation=(-limit, limit), dummy_2d=dummy_2d, mirror_axes=tuple(range(len(patch_size))))


def default_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return nnU-Net's default augmentation (nnU-Net behaviour 10.1)."""
    geometry = patch_geometry(patch_size)
    steps = [
        Step(name="noise", transform=GaussianNoise()),
        Step(name="blur", transform=GaussianBlur()),
        Step(name="brightness", transform=Brightness()),
        Step(name="contrast", transform=Contrast()),
        Step(name="low_resolution", transform=LowResolution(fixed_axes=(0,) if geometry.dummy_2d else ())),
        Step(name="gamma_inverted", transform=Gamma(probability=0.1, inverted=True)),
        Step(name="gamma", transform=Gamma(probability=0.3)),
        Step(name="mirror", transform=Mirror(axes=geometry.mirror_axes)),
    ]
    if masked_channels:
        steps.append(Step(name="mask_outside", transform=MaskOutside(channels=tuple(masked_channels))))
    spatial = Affine(rotation=geometry.rotation, in_plane=geometry.dummy_2d)
    return Recipe(spatial=spatial, steps=tuple(steps))
