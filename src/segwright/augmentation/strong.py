"""The strong recipe, after nnU-Net 2.8.1's DA5 (nnU-Net behaviour 10.8).

Intended differences: the second gamma is not inverted (DA5 inverts both by mistake); there is no median filter of
up to 7 voxels, which costs more than the training step; a Gaussian field is at least one voxel wide, where DA5's width
is 0 along an axis of less than 6 voxels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segwright.augmentation.compose import Recipe, Step
from segwright.augmentation.default import patch_geometry
from segwright.augmentation.intensity import Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from segwright.augmentation.local import (
    AdditiveBrightness,
    BlankRectangle,
    BrightnessGradient,
    LocalGamma,
    Rot90Transpose,
    Sharpen,
)
from segwright.augmentation.spatial import Affine, MaskOutside, Mirror
from segwright.augmentation.transform import Transform


def strong_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return strong augmentation, for data from many scanners or with few cases."""
    geometry = patch_geometry(patch_size)
    transforms: dict[str, Transform] = {}
    equal = equal_axes(patch_size)
    if equal:
        transforms["turn"] = Rot90Transpose(axes=equal)
    transforms |= {
        "blur": GaussianBlur(sigma=(0.3, 1.5), sigma_per_axis=False),
        "noise": GaussianNoise(),
        "shift": AdditiveBrightness(),
        "contrast": Contrast(probability=0.2, channel_probability=0.5, factor=(0.5, 2.0), clamp_probability=0.5),
        "low_resolution": LowResolution(
            probability=0.15, factor=(0.25, 1.0), fixed_axes=(0,) if geometry.dummy_2d else ()
        ),
        "gamma_inverted": Gamma(probability=0.1, inverted=True),
        "gamma": Gamma(probability=0.1),
        "mirror": Mirror(axes=geometry.mirror_axes),
        "blank": BlankRectangle(),
        "gradient": BrightnessGradient(),
        "local_gamma": LocalGamma(),
        "sharpen": Sharpen(),
    }
    if masked_channels:
        transforms["mask_outside"] = MaskOutside(channels=tuple(masked_channels))
    spatial = Affine(
        rotation=geometry.rotation,
        rotation_probability=0.4,
        axis_probability=0.5,
        scaling=(0.7, 1.43),
        scaling_per_axis=True,
        in_plane=geometry.dummy_2d,
    )
    steps = tuple(Step(name=name, transform=each) for name, each in transforms.items())
    return Recipe(spatial=spatial, steps=steps, previous_label_probability=1.0)


def equal_axes(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that share the most common size, if at least two do, whatever their spacing.

    >>> equal_axes((64, 128, 128)), equal_axes((32, 40))
    ((1, 2), ())
    """
    size, count = Counter(patch_size).most_common(1)[0]
    return tuple(axis for axis, extent in enumerate(patch_size) if extent == size) if count > 1 else ()
