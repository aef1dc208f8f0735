"""The recipe: which transforms a training sample goes through, in which order, as a value that can be edited."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from segwright.augmentation.intensity import Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from segwright.augmentation.resampling import Matrix
from segwright.augmentation.spatial import Affine, MaskOutside, Mirror
from segwright.augmentation.transform import Draw, Samples, Transform
from segwright.core.device import CPU
from segwright.core.errors import ConfigError, SegwrightError, nearest
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import (
    UserCodeError,
    describe_error,
    error_location,
    package_of,
    source_location,
    user_call,
)

SPATIAL = "spatial"
"""The name of the affine in a recipe; it comes first, as it decides what is read."""

ANISOTROPIC_PATCH = 3
"""A 3D patch whose longest edge exceeds this many times its first is rotated in plane only (nnU-Net behaviour 9.4)."""

ELONGATED_PATCH = 1.5
"""A 2D patch longer than this many times its short edge is rotated little (nnU-Net behaviour 9.4)."""

_PASSED_ON = (SegwrightError, MemoryError, torch.OutOfMemoryError)
"""Errors that are no fault of the transform in which they come up, or tell it themselves."""

Key = Callable[[str], np.random.Generator]
"""Gives the generator of a named transform for one sample: draws do not shift when a recipe is edited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGeometry:
    """How patches of a shape are turned: rotation range in radians, in-plane only or not, axes that are mirrored."""

    rotation: tuple[float, float]
    dummy_2d: bool
    mirror_axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A transform with the name it is edited by."""

    name: str
    transform: Transform

    def __post_init__(self) -> None:
        if self.name == SPATIAL or isinstance(self.transform, Affine):
            raise ConfigError(
                f"augmentation '{self.name}': rotation and scaling come first, as '{SPATIAL}', for they decide what is "
                f"read; a step has another name and cannot be a {Affine.__name__}: recipe.replace('{SPATIAL}', ...)"
            )
        if isinstance(self.transform, type) or not all(
            callable(getattr(self.transform, method, None)) for method in ("draw", "apply")
        ):
            raise ConfigError(
                f"augmentation '{self.name}': expected an object with draw(rng, shape) and apply(samples, draws), got "
                f"{_shown(self.transform)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An affine and an ordered tuple of further transforms.

    `previous_label_probability` is for the second stage of a cascade: how often the binary operators and the removal
    of a component, once drawn for a sample, change each label's map of the previous stage.

    >>> recipe = build_recipe("default", (64, 64, 64))
    >>> recipe.without("mirror").mirror_axes
    ()
    """

    spatial: Affine | None = None
    steps: tuple[Step, ...] = ()
    previous_label_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.spatial is not None and not isinstance(self.spatial, Affine):
            raise ConfigError(f"augmentation '{SPATIAL}' must be an Affine, got {_shown(self.spatial)}")
        names = self.names()
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"augmentation recipe: two transforms are called '{name}'; names must differ")

    def names(self) -> tuple[str, ...]:
        """Return the names of the transforms in order."""
        return ((SPATIAL,) if self.spatial else ()) + tuple(step.name for step in self.steps)

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """The spatial axes that training mirrors, hence the ones that inference may mirror."""
        axes = {axis for step in self.steps if isinstance(step.transform, Mirror) for axis in step.transform.axes}
        return tuple(sorted(axes))

    @property
    def swaps_sides(self) -> bool:
        """Whether mirroring exchanges the labels of left and right."""
        return any(isinstance(step.transform, Mirror) and step.transform.swaps_sides for step in self.steps)

    def without(self, name: str) -> Recipe:
        """Return the recipe without the named transform."""
        self._require(name)
        if name == SPATIAL:
            return replace(self, spatial=None)
        return replace(self, steps=tuple(step for step in self.steps if step.name != name))

    def replace(self, name: str, transform: Transform | Affine) -> Recipe:
        """Return the recipe with the named transform exchanged; `spatial` takes an `Affine` and may be missing."""
        if name != SPATIAL:
            self._require(name)
        if isinstance(transform, Affine) != (name == SPATIAL):
            raise ConfigError(f"augmentation recipe: '{name}' cannot be a {type(transform).__name__}")
        if isinstance(transform, Affine):
            return replace(self, spatial=transform)
        steps = (Step(name=name, transform=transform) if step.name == name else step for step in self.steps)
        return replace(self, steps=tuple(steps))

    def insert_after(self, name: str, new_name: str, transform: Transform) -> Recipe:
        """Return the recipe with `transform`, called `new_name`, right after the named one.

        After `spatial` means first, in a recipe without rotation and scaling too.
        """
        if name != SPATIAL:
            self._require(name)
        position = 0 if name == SPATIAL else 1 + [step.name for step in self.steps].index(name)
        steps = (*self.steps[:position], Step(name=new_name, transform=transform), *self.steps[position:])
        return replace(self, steps=steps)

    def draw_matrix(self, key: Key, dims: int) -> Matrix | None:
        """Draw the affine of one sample; None for a plain crop."""
        return None if self.spatial is None else self.spatial.draw(key(SPATIAL), dims)

    def draw(self, key: Key, shape: Sequence[int]) -> dict[str, Draw]:
        """Draw all other transforms for one sample of `shape` (C, *S); those that are left out are missing."""
        drawn = ((step.name, _draw(step, key, shape)) for step in self.steps)
        return {name: draw for name, draw in drawn if draw is not None}

    def apply(self, samples: Samples, draws: Sequence[Mapping[str, Draw]]) -> Samples:
        """Return a batch after the steps, each on the samples that drew it, in order; `samples` may be overwritten."""
        for step in self.steps:
            chosen = [index for index, draw in enumerate(draws) if step.name in draw]
            if not chosen:
                continue
            drawn = [draws[sample][step.name] for sample in chosen]
            if len(chosen) == len(draws):
                samples = _changed(step, samples, drawn)
                continue
            index = torch.tensor(chosen).to(samples.images.device, non_blocking=True)
            part = Samples(images=samples.images.index_select(0, index), labels=samples.labels.index_select(0, index))
            changed = _changed(step, part, drawn)
            samples.images.index_copy_(0, index, changed.images)
            if changed.labels is not part.labels:
                samples.labels.index_copy_(0, index, changed.labels)
        return samples

    def _require(self, name: str) -> None:
        if name not in self.names():
            raise ConfigError(f"augmentation recipe has no transform '{name}'{nearest(name, self.names())}")


def _draw(step: Step, key: Key, shape: Sequence[int]) -> Draw | None:
    rng = key(step.name)
    try:
        draw: object = step.transform.draw(rng, shape)
    except _PASSED_ON:
        raise
    except Exception as error:
        raise _blamed(step, "draw", error) from error
    if draw is None or isinstance(draw, Mapping):
        return draw
    raise ConfigError(
        f"augmentation '{step.name}': draw returned {_shown(draw)}; return a dict of numpy arrays, or None where the "
        "sample stays as it is"
    )


def _changed(step: Step, samples: Samples, draws: Sequence[Draw]) -> Samples:
    looks_inside = _is_foreign(step) and samples.images.device.type == CPU  # elsewhere the host would wait for it
    was_finite = looks_inside and _is_finite(samples.images)
    try:
        changed: object = step.transform.apply(samples, draws)
    except _PASSED_ON:
        raise
    except Exception as error:
        raise _blamed(step, "apply", error) from error
    if not isinstance(changed, Samples):
        raise ConfigError(f"augmentation '{step.name}': apply returned {_shown(changed)}; return the changed Samples")
    for what, before, after in (
        ("images", samples.images, changed.images),
        ("labels", samples.labels, changed.labels),
    ):
        if not isinstance(after, torch.Tensor):
            raise ConfigError(f"augmentation '{step.name}': {what} are {_shown(after)}; a transform returns tensors")
        if (after.shape, after.dtype, after.device) != (before.shape, before.dtype, before.device):
            raise ConfigError(
                f"augmentation '{step.name}' turned {what} {_described(before)} into {_described(after)}; "
                "a transform keeps the shape, the type and the device"
            )
    if was_finite and not _is_finite(changed.images):
        raise ConfigError(
            f"augmentation '{step.name}' made values that are not finite of images that were; look at divisions, "
            "powers and logarithms of constant or negative patches"
        )
    return changed


def _blamed(step: Step, method: str, error: Exception) -> UserCodeError:
    kind = type(step.transform)
    place = error_location(error, {package_of(kind.__module__)}) or source_location(getattr(kind, method))
    return UserCodeError(
        f"{place}: augmentation '{step.name}': {kind.__name__}.{method} failed with {describe_error(error)}"
    )


def _is_foreign(step: Step) -> bool:
    """Whether a transform comes from outside this package, whose own need no look at every voxel."""
    return type(step.transform).__module__.partition(".")[0] != __name__.partition(".")[0]


def _is_finite(images: torch.Tensor) -> bool:
    return math.isfinite(float(images.sum()))


def _described(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _shown(value: object) -> str:
    return f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"


class RecipeBuilder(Protocol):
    """What a registered name or a `module:attr` reference must be."""

    def __call__(self, patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
        """Return the recipe for patches of `patch_size`; `masked_channels` were normalised inside the nonzero mask."""
        ...


def patch_geometry(patch_size: Sequence[int]) -> PatchGeometry:
    """Return rotation range, in-plane rule and mirror axes of a patch (nnU-Net behaviour 9.4)."""
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


def _strong_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    from segwright.augmentation.strong import strong_recipe  # built on this module

    return strong_recipe(patch_size, masked_channels=masked_channels)


def _elastic_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    from segwright.augmentation.elastic import elastic_recipe  # built on this module

    return elastic_recipe(patch_size, masked_channels=masked_channels)


def no_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return the recipe that changes nothing."""
    return Recipe()


RECIPES: Registry[RecipeBuilder] = Registry("augmentation recipe")
RECIPES.register("default", default_recipe)
RECIPES.register("none", no_recipe)
RECIPES.register("strong", _strong_recipe)
RECIPES.register("elastic", _elastic_recipe)


def build_recipe(reference: str, patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return the recipe behind a registered name or `module:attr` (a `RecipeBuilder`)."""
    builder: RecipeBuilder = (
        import_reference(reference, kind="augmentation recipe") if ":" in reference else RECIPES.get(reference)
    )
    contract = "expected a function fn(patch_size, *, masked_channels=()) that returns a Recipe"
    with user_call(builder, f"augmentation recipe '{reference}'", contract=contract):
        recipe: object = builder(patch_size, masked_channels=masked_channels)
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{source_location(builder)}: augmentation recipe '{reference}' returned {_shown(recipe)}; return a Recipe"
        )
    return recipe
