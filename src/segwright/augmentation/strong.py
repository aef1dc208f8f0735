"""The strong recipe, after nnU-Net 2.8.1's DA5 (spec B 3.9).

Deviations, on purpose: its second inverted gamma is the plain one that was meant (S19), and its median filter of up to
7 voxels, which costs more than the training step, is left to the blur that shares its draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segwright.augmentation.intensity import Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from segwright.augmentation.local import Blank, Gradient, LocalGamma, Sharpen, Shift, Turn
from segwright.augmentation.recipe import Recipe, Step, patch_geometry
from segwright.augmentation.spatial import Affine, MaskOutside, Mirror
from segwright.augmentation.transform import Transform


def strong_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return the recipe for data of many scanners, or for few cases."""
    geometry = patch_geometry(patch_size)
    transforms: dict[str, Transform] = {}
    equal = equal_axes(patch_size[1:] if geometry.dummy_2d else patch_size, first=int(geometry.dummy_2d))
    if equal:
        transforms["turn"] = Turn(axes=equal)
    transforms |= {
        "blur": GaussianBlur(sigma=(0.3, 1.5)),
        "noise": GaussianNoise(),
        "shift": Shift(),
        "contrast": Contrast(probability=0.2, factor=(0.5, 2.0)),
        "low_resolution": LowResolution(
            probability=0.15, factor=(0.25, 1.0), fixed_axes=(0,) if geometry.dummy_2d else ()
        ),
        "gamma_inverted": Gamma(probability=0.1, inverted=True),
        "gamma": Gamma(probability=0.1),
        "mirror": Mirror(axes=geometry.mirror_axes),
        "blank": Blank(),
        "gradient": Gradient(),
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
    return Recipe(spatial=spatial, steps=tuple(Step(name=name, transform=each) for name, each in transforms.items()))


def equal_axes(patch_size: Sequence[int], *, first: int = 0) -> tuple[int, ...]:
    """Return the axes of the commonest size, counted from `first`, if there are at least two.

    >>> equal_axes((64, 128, 128)), equal_axes((32, 40))
    ((1, 2), ())
    """
    size, count = Counter(patch_size).most_common(1)[0]
    return tuple(first + axis for axis, extent in enumerate(patch_size) if extent == size) if count > 1 else ()
