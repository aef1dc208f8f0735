"""Recipes: the table of patch geometries, edits by value, application to chosen samples only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from segwright.augmentation.intensity import Brightness, Gamma, LowResolution
from segwright.augmentation.recipe import Recipe, Step, build_recipe, default_recipe, patch_geometry
from segwright.augmentation.spatial import Affine
from segwright.augmentation.transform import Draw, Samples
from segwright.core.errors import ConfigError


@pytest.mark.parametrize(
    ("patch_size", "degrees", "dummy_2d", "axes"),
    [
        ((512, 512), 180, False, (0, 1)),
        ((320, 192), 15, False, (0, 1)),
        ((20, 320, 256), 180, True, (0, 1, 2)),
        ((40, 56, 40), 30, False, (0, 1, 2)),
        ((64, 192, 160), 30, False, (0, 1, 2)),  # exactly three times the first edge is not anisotropic
    ],
)
def test_patch_geometry_follows_the_table(
    patch_size: tuple[int, ...], degrees: float, dummy_2d: bool, axes: tuple[int, ...]
) -> None:
    geometry = patch_geometry(patch_size)
    assert geometry.rotation == pytest.approx((-math.radians(degrees), math.radians(degrees)))
    assert geometry.dummy_2d is dummy_2d
    assert geometry.mirror_axes == axes


def test_default_recipe_has_the_reference_order() -> None:
    recipe = default_recipe((32, 32, 32), masked_channels=(0,))
    assert recipe.names() == (
        "spatial",
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "gamma_inverted",
        "gamma",
        "mirror",
        "mask_outside",
    )


def test_thick_slices_keep_their_first_axis() -> None:
    recipe = default_recipe((8, 64, 64))
    assert recipe.spatial is not None
    assert recipe.spatial.in_plane
    low_resolution = next(step.transform for step in recipe.steps if step.name == "low_resolution")
    assert isinstance(low_resolution, LowResolution)
    assert low_resolution.fixed_axes == (0,)


def test_edits_return_new_recipes() -> None:
    recipe = default_recipe((32, 32))
    edited = recipe.without("mirror").without("spatial").replace("gamma", Gamma(probability=1.0))
    edited = edited.insert_after("noise", "lighter", Brightness(factor=(1.0, 2.0)))
    assert edited.names()[:3] == ("noise", "lighter", "blur")
    assert edited.mirror_axes == ()
    assert recipe.mirror_axes == (0, 1)
    assert recipe.insert_after("spatial", "first", Gamma()).names()[1] == "first"


def test_unknown_transform_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mirror'"):
        default_recipe((32, 32)).without("miror")


def test_unknown_recipe_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="default, none"):
        build_recipe("zzz", (32, 32))


def test_affine_cannot_stand_among_the_steps() -> None:
    with pytest.raises(ConfigError, match="cannot be a Affine"):
        default_recipe((32, 32)).replace("noise", Affine(rotation=(0, 1)))


def test_two_transforms_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gamma'"):
        default_recipe((32, 32)).insert_after("noise", "gamma", Gamma())


def test_recipe_by_reference_is_imported() -> None:
    recipe = build_recipe("segwright.augmentation.recipe:default_recipe", (32, 32, 32))
    assert recipe == default_recipe((32, 32, 32))


class AddOne:
    """A user's transform from outside the package."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Draw | None:
        return {"amount": np.asarray(1.0)} if rng.random() < 0.5 else None

    def apply(self, samples: Samples, draws: Sequence[Draw]) -> Samples:
        return Samples(images=samples.images + 1, labels=samples.labels)


def test_only_samples_that_drew_a_step_are_changed() -> None:
    recipe = Recipe(steps=(Step(name="add", transform=AddOne()),))
    samples = Samples(images=torch.zeros(3, 1, 4, 4), labels=torch.zeros(3, 1, 4, 4, dtype=torch.int16))
    recipe.apply(samples, [{"add": {"amount": np.asarray(1.0)}}, {}, {"add": {"amount": np.asarray(1.0)}}])
    assert samples.images.mean((1, 2, 3)).tolist() == [1.0, 0.0, 1.0]


def test_draws_of_a_step_survive_edits_of_others() -> None:
    def key(name: str) -> np.random.Generator:
        return np.random.default_rng([ord(letter) for letter in name])

    whole = default_recipe((32, 32))
    edited = whole.without("noise").without("blur")
    drawn, redrawn = whole.draw(key, (1, 32, 32)), edited.draw(key, (1, 32, 32))
    assert redrawn
    for name, draw in redrawn.items():
        np.testing.assert_equal(dict(drawn[name]), dict(draw))


class Cut:
    """A transform that breaks the rule of unchanged shapes."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Draw | None:
        return {}

    def apply(self, samples: Samples, draws: Sequence[Draw]) -> Samples:
        return Samples(images=samples.images[..., 1:], labels=samples.labels)


def test_transform_that_changes_the_shape_is_named() -> None:
    recipe = Recipe(steps=(Step(name="cut", transform=Cut()),))
    samples = Samples(images=torch.zeros(1, 1, 4, 4), labels=torch.zeros(1, 1, 4, 4, dtype=torch.int16))
    with pytest.raises(ConfigError, match=r"'cut' turned images \(1, 1, 4, 4\) into \(1, 1, 4, 3\)"):
        recipe.apply(samples, [{"cut": {}}])
