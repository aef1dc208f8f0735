"""The augmentation recipe: an ordered, editable sequence of named transforms, drawn and applied per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from segwright.augmentation.resampling import Matrix
from segwright.augmentation.spatial import Affine, Mirror
from segwright.augmentation.transform import Params, Samples, Transform
from segwright.core.device import CPU
from segwright.core.errors import ConfigError, SegwrightError, did_you_mean
from segwright.core.extensions.user_code import (
    UserCodeError,
    describe_error,
    error_location,
    package_of,
    source_location,
)

SPATIAL = "spatial"
"""Name of the affine in a recipe; it is first, since it decides which voxels are read."""

_PASSED_ON = (SegwrightError, MemoryError, torch.OutOfMemoryError)
"""Errors that the transform did not cause, or that already name it."""

RngFactory = Callable[[str], np.random.Generator]
"""Maps a transform's name to its random generator for one sample, so that editing a recipe changes no other draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A transform and its name in the recipe."""

    name: str
    transform: Transform

    def __post_init__(self) -> None:
        if self.name == SPATIAL or isinstance(self.transform, Affine):
            raise ConfigError(
                f"augmentation '{self.name}': rotation and scaling must come first, as '{SPATIAL}', since they decide "
                f"which voxels are read; use recipe.replace('{SPATIAL}', {Affine.__name__}(...)), or another name here"
            )
        if isinstance(self.transform, type) or not all(
            callable(getattr(self.transform, method, None)) for method in ("draw", "apply")
        ):
            raise ConfigError(
                f"augmentation '{self.name}': expected an object with draw(rng, shape) and apply(samples, draws), got "
                f"{describe_type(self.transform)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An augmentation pipeline: an affine, then an ordered tuple of named transforms.

    `previous_label_probability` is for the second stage of a cascade: the probability that a binary operator or
    component removal that was drawn for a sample is applied to a label of the previous stage.

    >>> from segwright.augmentation.recipe import build_recipe
    >>> recipe = build_recipe("default", (64, 64, 64))
    >>> recipe.without("mirror").mirror_axes
    ()
    """

    spatial: Affine | None = None
    steps: tuple[Step, ...] = ()
    previous_label_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.spatial is not None and not isinstance(self.spatial, Affine):
            raise ConfigError(f"augmentation '{SPATIAL}' must be an Affine, got {describe_type(self.spatial)}")
        names = self.names()
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"augmentation recipe: two transforms have the name '{name}'; names must be unique")

    def names(self) -> tuple[str, ...]:
        """Return the names of the transforms in order."""
        return ((SPATIAL,) if self.spatial else ()) + tuple(step.name for step in self.steps)

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """The spatial axes that training mirrors, which inference may mirror too."""
        axes = {axis for step in self.steps if isinstance(step.transform, Mirror) for axis in step.transform.axes}
        return tuple(sorted(axes))

    @property
    def swaps_sides(self) -> bool:
        """Whether mirroring swaps left and right labels."""
        return any(isinstance(step.transform, Mirror) and step.transform.swaps_sides for step in self.steps)

    def without(self, name: str) -> Recipe:
        """Return the recipe without the named transform."""
        self._require(name)
        if name == SPATIAL:
            return replace(self, spatial=None)
        return replace(self, steps=tuple(step for step in self.steps if step.name != name))

    def replace(self, name: str, transform: Transform | Affine) -> Recipe:
        """Return the recipe with the named transform replaced; `spatial` takes an `Affine`, also if there was none."""
        if name != SPATIAL:
            self._require(name)
        if isinstance(transform, Affine) != (name == SPATIAL):
            raise ConfigError(f"augmentation recipe: '{name}' cannot be a {type(transform).__name__}")
        if isinstance(transform, Affine):
            return replace(self, spatial=transform)
        steps = (Step(name=name, transform=transform) if step.name == name else step for step in self.steps)
        return replace(self, steps=tuple(steps))

    def insert_after(self, name: str, new_name: str, transform: Transform) -> Recipe:
        """Return the recipe with `transform` inserted as `new_name` after the named one.

        After `spatial` means first, even in a recipe without rotation and scaling.
        """
        if name != SPATIAL:
            self._require(name)
        position = 0 if name == SPATIAL else 1 + [step.name for step in self.steps].index(name)
        steps = (*self.steps[:position], Step(name=new_name, transform=transform), *self.steps[position:])
        return replace(self, steps=steps)

    def draw_matrix(self, rng_for: RngFactory, dims: int) -> Matrix | None:
        """Draw the affine of one sample; None for a plain crop."""
        return None if self.spatial is None else self.spatial.draw(rng_for(SPATIAL), dims)

    def draw(self, rng_for: RngFactory, shape: Sequence[int]) -> dict[str, Params]:
        """Draw the parameters of the other transforms for one sample of `shape` (C, *S), by name; omit unused ones."""
        drawn = ((step.name, _draw(step, rng_for, shape)) for step in self.steps)
        return {name: draw for name, draw in drawn if draw is not None}

    def apply(self, samples: Samples, draws: Sequence[Mapping[str, Params]]) -> Samples:
        """Apply the steps in order, each to the samples that drew it; `samples` may be overwritten."""
        for step in self.steps:
            chosen = [index for index, draw in enumerate(draws) if step.name in draw]
            if not chosen:
                continue
            drawn = [draws[sample][step.name] for sample in chosen]
            if len(chosen) == len(draws):
                samples = _apply(step, samples, drawn)
                continue
            index = torch.tensor(chosen).to(samples.images.device, non_blocking=True)
            part = Samples(images=samples.images.index_select(0, index), labels=samples.labels.index_select(0, index))
            changed = _apply(step, part, drawn)
            samples.images.index_copy_(0, index, changed.images)
            if changed.labels is not part.labels:
                samples.labels.index_copy_(0, index, changed.labels)
        return samples

    def _require(self, name: str) -> None:
        if name not in self.names():
            raise ConfigError(f"augmentation recipe has no transform '{name}'{did_you_mean(name, self.names())}")


def describe_type(value: object) -> str:
    """Describe the type of a value for an error message."""
    return f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"


def _draw(step: Step, rng_for: RngFactory, shape: Sequence[int]) -> Params | None:
    rng = rng_for(step.name)
    try:
        draw: object = step.transform.draw(rng, shape)
    except _PASSED_ON:
        raise
    except Exception as error:
        raise _transform_error(step, "draw", error) from error
    if draw is None or isinstance(draw, Mapping):
        return draw
    raise ConfigError(
        f"augmentation '{step.name}': draw returned {describe_type(draw)}; return a dict of numpy arrays, or None to "
        "leave the sample unchanged"
    )


def _apply(step: Step, samples: Samples, draws: Sequence[Params]) -> Samples:
    checks_values = _is_custom(step) and samples.images.device.type == CPU  # on a GPU the host would have to wait
    was_finite = checks_values and _is_finite(samples.images)
    try:
        changed: object = step.transform.apply(samples, draws)
    except _PASSED_ON:
        raise
    except Exception as error:
        raise _transform_error(step, "apply", error) from error
    if not isinstance(changed, Samples):
        raise ConfigError(f"augmentation '{step.name}': apply returned {describe_type(changed)}; return Samples")
    for what, before, after in (
        ("images", samples.images, changed.images),
        ("labels", samples.labels, changed.labels),
    ):
        if not isinstance(after, torch.Tensor):
            raise ConfigError(
                f"augmentation '{step.name}': {what} are {describe_type(after)}; a transform must return tensors"
            )
        if (after.shape, after.dtype, after.device) != (before.shape, before.dtype, before.device):
            raise ConfigError(
                f"augmentation '{step.name}' changed {what} from {_describe(before)} to {_describe(after)}; "
                "a transform must keep shape, dtype and device"
            )
    if was_finite and not _is_finite(changed.images):
        raise ConfigError(
            f"augmentation '{step.name}' produced NaN or infinity from finite images; check divisions, "
            "powers and logarithms of constant or negative patches"
        )
    return changed


def _transform_error(step: Step, method: str, error: Exception) -> UserCodeError:
    kind = type(step.transform)
    place = error_location(error, {package_of(kind.__module__)}) or source_location(getattr(kind, method))
    return UserCodeError(
        f"{place}: augmentation '{step.name}': {kind.__name__}.{method} failed with {describe_error(error)}"
    )


def _is_custom(step: Step) -> bool:
    """Return whether a transform is user code; only then are its values checked for NaN."""
    return type(step.transform).__module__.partition(".")[0] != __name__.partition(".")[0]


def _is_finite(images: torch.Tensor) -> bool:
    return math.isfinite(float(images.sum()))


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
