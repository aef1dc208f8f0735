"""The strong recipe, after nnU-Net 2.8.1's DA5 (nnU-Net behaviour 10.8).

Deviations, on purpose: its second inverted gamma is the plain one that was meant; its median filter of up to 7
voxels, which costs more than the training step, is left to the blur that shares its draw; a bump is no narrower than
one voxel, as along an axis of less than 6 voxels its least width would be 0.
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
    equal = equal_axes(patch_size)
    if equal:
        transforms["turn"] = Turn(axes=equal)
    transforms |= {
        "blur": GaussianBlur(sigma=(0.3, 1.5), sigma_per_axis=False),
        "noise": GaussianNoise(),
        "shift": Shift(),
        "contrast": Contrast(probability=0.2, channel_probability=0.5, factor=(0.5, 2.0), clamp_probability=0.5),
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
    steps = tuple(Step(name=name, transform=each) for name, each in transforms.items())
    return Recipe(spatial=spatial, steps=steps, previous_label_probability=1.0)


def equal_axes(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of the commonest size if there are at least two; voxels of thick slices may be turned too.

    >>> equal_axes((64, 128, 128)), equal_axes((32, 40))
    ((1, 2), ())
    """
    size, count = Counter(patch_size).most_common(1)[0]
    return tuple(axis for axis, extent in enumerate(patch_size) if extent == size) if count > 1 else ()
