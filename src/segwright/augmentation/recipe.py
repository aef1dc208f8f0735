"""Build augmentation recipes by name or reference; the registered names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from segwright.augmentation.compose import Recipe, Step, describe_type
from segwright.augmentation.default import default_recipe
from segwright.augmentation.elastic import elastic_recipe
from segwright.augmentation.strong import strong_recipe
from segwright.core.errors import ConfigError
from segwright.core.extensions.registry import Registry, import_reference
from segwright.core.extensions.user_code import require_arguments, source_location, user_call

__all__ = ["RECIPES", "Recipe", "RecipeBuilder", "Step", "build_recipe", "default_recipe", "no_recipe"]


class RecipeBuilder(Protocol):
    """A function that builds a recipe, behind a registered name or `module:attr`."""

    def __call__(self, patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
        """Return the recipe for patches of `patch_size`; `masked_channels` were normalised inside the nonzero mask.

        It may take more keyword arguments, `augmentation_kwargs`.
        """
        ...


def no_recipe(patch_size: Sequence[int], *, masked_channels: Sequence[int] = ()) -> Recipe:
    """Return the empty recipe."""
    return Recipe()


RECIPES: Registry[RecipeBuilder] = Registry("augmentation recipe")
RECIPES.register("default", default_recipe)
RECIPES.register("none", no_recipe)
RECIPES.register("strong", strong_recipe)
RECIPES.register("elastic", elastic_recipe)


def build_recipe(
    reference: str,
    patch_size: Sequence[int],
    *,
    masked_channels: Sequence[int] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build the recipe with a registered name, or of a `module:attr` reference to a `RecipeBuilder`."""
    builder: RecipeBuilder = (
        import_reference(reference, kind="augmentation recipe") if ":" in reference else RECIPES.get(reference)
    )
    if kwargs:
        called = "fn(patch_size, *, masked_channels, **augmentation_kwargs) -> Recipe"
        require_arguments(
            builder, f"augmentation recipe '{reference}'", ("masked_channels",), 1, kwargs, contract=called
        )
    contract = "expected a function fn(patch_size, *, masked_channels=()) that returns a Recipe"
    with user_call(builder, f"augmentation recipe '{reference}'", contract=contract):
        with_kwargs: RecipeBuilder = partial(builder, **kwargs) if kwargs else builder
        recipe: object = with_kwargs(patch_size, masked_channels=masked_channels)
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{source_location(builder)}: augmentation recipe '{reference}' returned {describe_type(recipe)}; "
            "return a Recipe"
        )
    return recipe
