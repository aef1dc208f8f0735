"""Recipes: the table of patch geometries, edits by value, application to chosen samples only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from segwright.augmentation.default import patch_geometry
from segwright.augmentation.intensity import Brightness, Gamma, LowResolution
from segwright.augmentation.recipe import Recipe, Step, build_recipe, default_recipe
from segwright.augmentation.spatial import Affine
from segwright.augmentation.transform import Params, Samples
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

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        return {"amount": np.asarray(1.0)} if rng.random() < 0.5 else None

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
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

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
        return {}

    def apply(self, samples: Samples, draws: Sequence[Params]) -> Samples:
        return Samples(images=samples.images[..., 1:], labels=samples.labels)


def test_transform_that_changes_the_shape_is_named() -> None:
    recipe = Recipe(steps=(Step(name="cut", transform=Cut()),))
    samples = Samples(images=torch.zeros(1, 1, 4, 4), labels=torch.zeros(1, 1, 4, 4, dtype=torch.int16))
    with pytest.raises(ConfigError, match=r"'cut' changed images from \(1, 1, 4, 4\) .* to \(1, 1, 4, 3\)"):
        recipe.apply(samples, [{"cut": {}}])


def in_place(samples: Samples) -> Samples:
    return Samples(images=samples.images.mul_(0).div_(0), labels=samples.labels)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (lambda samples: samples.nothing, "'bad': Foreign.apply failed with AttributeError: .*nothing"),
        (lambda samples: None, "'bad': apply returned a NoneType; return Samples"),
        (lambda samples: Samples(images=samples.images.numpy(), labels=samples.labels), "images are a ndarray"),
        (lambda samples: Samples(images=samples.images.double(), labels=samples.labels), "to .* float64 on cpu"),
        (lambda samples: Samples(images=samples.images, labels=samples.labels.long()), "labels .* int16 .*int64"),
        (lambda samples: Samples(images=samples.images / 0, labels=samples.labels), "'bad' produced NaN"),
        (in_place, "'bad' produced NaN or infinity"),
    ],
)
@pytest.mark.parametrize("of", [1, 2])
def test_a_fault_of_a_foreign_transform_is_told_with_its_name(faulty: Any, message: str, of: int) -> None:
    class Foreign:
        def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Params | None:
            return {}

        def apply(self, samples: Samples, draws: Sequence[Params]) -> Any:
            return faulty(samples)

    recipe = Recipe(steps=(Step(name="bad", transform=Foreign()),))
    samples = Samples(images=torch.zeros(of, 1, 4, 4), labels=torch.zeros(of, 1, 4, 4, dtype=torch.int16))
    with pytest.raises(ConfigError, match=message):
        recipe.apply(samples, [{"bad": {}}, {}][:of])


def test_images_that_were_not_finite_are_not_a_transforms_fault() -> None:
    recipe = Recipe(steps=(Step(name="add", transform=AddOne()),))
    images = torch.full((1, 1, 4, 4), torch.nan)
    samples = Samples(images=images, labels=torch.zeros(1, 1, 4, 4, dtype=torch.int16))
    assert bool(recipe.apply(samples, [{"add": {}}]).images.isnan().all())


@pytest.mark.parametrize(
    ("returned", "message"), [(3.0, "'bad': draw returned a float"), (None, "draw failed with ZeroDivisionError")]
)
def test_a_faulty_draw_is_told_with_its_name(returned: Any, message: str) -> None:
    class Foreign(AddOne):
        def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Any:
            return returned or 1 / 0

    recipe = Recipe(steps=(Step(name="bad", transform=Foreign()),))
    with pytest.raises(ConfigError, match=message):
        recipe.draw(lambda name: np.random.default_rng(0), (1, 4, 4))


def failing_builder(patch_size: Sequence[int]) -> Recipe:
    """Lacks the argument that every builder gets."""
    return Recipe()


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (failing_builder, "failed with TypeError: .*masked_channels.*expected a function fn"),
        (lambda patch_size, masked_channels: None, "returned a NoneType; return a Recipe"),
        (lambda patch_size, masked_channels: 1 / 0, "failed with ZeroDivisionError"),
        (Recipe(), "failed with TypeError: .*not callable"),
    ],
)
def test_a_faulty_builder_is_told_with_its_reference(
    monkeypatch: pytest.MonkeyPatch, builder: Any, message: str
) -> None:
    monkeypatch.setattr("segwright.augmentation.recipe.import_reference", lambda reference, kind: builder)
    with pytest.raises(ConfigError, match=f"'mypkg:recipe' {message}"):
        build_recipe("mypkg:recipe", (8, 8))


def test_what_is_no_transform_is_refused_when_the_recipe_is_made() -> None:
    recipe = default_recipe((32, 32))
    with pytest.raises(ConfigError, match="must come first, as .spatial.*recipe.replace"):
        recipe.insert_after("noise", "turn", Affine(rotation=(0, 1)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'add': expected an object with .* got the class AddOne itself"):
        recipe.insert_after("noise", "add", AddOne)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got a int"):
        recipe.replace("noise", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'spatial' must be an Affine, got a AddOne"):
        Recipe(spatial=AddOne())  # type: ignore[arg-type]


def test_an_empty_recipe_can_be_extended() -> None:
    empty = build_recipe("none", (32, 32))
    assert empty.insert_after("spatial", "gamma", Gamma()).insert_after("gamma", "add", AddOne()).names() == (
        "gamma",
        "add",
    )
    assert empty.replace("spatial", Affine(rotation=(0, 1))).names() == ("spatial",)
    later = default_recipe((32, 32)).without("spatial").insert_after("spatial", "first", Gamma())
    assert later.names()[:2] == ("first", "noise")
    with pytest.raises(ConfigError, match="no transform 'spatial'"):
        empty.without("spatial")
