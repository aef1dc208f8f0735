"""Nothing in the hot path makes the host wait for the device: no value is read back, no shape depends on values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segwright.augmentation.recipe import Recipe, Step, build_recipe
from segwright.augmentation.spatial import Affine
from segwright.augmentation.transform import Params, Samples
from segwright.core.errors import ConfigError
from segwright.core.seeds import generator
from segwright.data.labels import Labels
from segwright.training.loading.batches import BatchLoader
from segwright.training.loading.caching import CachePlacement, CaseCache

pytestmark = pytest.mark.slow

WITHOUT_VALUES = torch.device("meta")
"""Its tensors have shapes alone: reading a value, or a shape that depends on values, is an error."""

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
PATCHES = [(12, 14, 10), (6, 20, 22), (16, 12)]


class Reading(Exception):
    """A value was read."""


class Forbidding(TorchDispatchMode):
    """Raises at every operation that makes the host wait on a GPU."""

    forbidden = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten._unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if str(func).startswith(self.forbidden):
            raise Reading(str(func))
        return func(*args, **(kwargs or {}))


class CountingCopies(TorchDispatchMode):
    """Adds up the bytes that are copied from the host to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.copied_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func).startswith(("aten._to_copy", "aten.copy_")):
            source, copy = (args[1], args[0]) if str(func).startswith("aten.copy_") else (args[0], out)
            if source.device.type == "cpu" and copy.device == WITHOUT_VALUES:
                self.copied_bytes += source.nbytes
        return out


class Case:
    """A case of 30 x 32 x 34 voxels with two channels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.image = rng.normal(size=(2, 30, 32, 34)).astype(np.float32)
        self.label = rng.integers(-1, 3, (1, 30, 32, 34)).astype(np.int16)
        self.class_locations = {1: np.argwhere(self.label[0] == 1)}


class Store:
    def load(self, identifier: str) -> Case:
        return Case()


@pytest.fixture
def valueless_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without values has no generator either."""

    class NoGenerator:
        def __init__(self, device: torch.device) -> None:
            pass

        def manual_seed(self, seed: int) -> None:
            return None

    monkeypatch.setattr(torch, "Generator", NoGenerator)


def always_turned(recipe: Recipe, patch_size: tuple[int, ...]) -> Recipe:
    assert recipe.spatial is not None
    geometry = {"in_plane": recipe.spatial.in_plane, "scaling_probability": 0.5}
    return recipe.replace("spatial", Affine(rotation=(-0.5, 0.5), rotation_probability=0.8, **geometry))


def make_loader(patch_size: tuple[int, ...], recipe: str, place: Any) -> BatchLoader:
    return BatchLoader(
        CaseCache(Store(), CachePlacement(location=place, budget_bytes=2**40), WITHOUT_VALUES),
        ["case"],
        patch_size=patch_size,
        batch_size=40,
        labels=LABELS,
        recipe=always_turned(build_recipe(recipe, patch_size, masked_channels=[0]), patch_size),
        device=WITHOUT_VALUES,
        scales=[[1.0] * len(patch_size), [0.5] * len(patch_size)],
    )


@pytest.mark.usefixtures("valueless_noise")
@pytest.mark.parametrize("place", ["none", "device"])
@pytest.mark.parametrize("recipe", ["default", "strong", "elastic"])
@pytest.mark.parametrize("patch_size", PATCHES)
def test_whole_batches_are_made_without_reading_a_value(patch_size: tuple[int, ...], recipe: str, place: Any) -> None:
    loader = make_loader(patch_size, recipe, place)
    names = {name for step in range(2) for draw in loader.draw(0, step) for name in draw.augmentation}
    assert names == {*loader.recipe.names()} - {"spatial"}  # every transform took part
    for step in range(2):
        batch = loader.batch(0, step)
        assert batch["data"].shape == (40, 2, *patch_size)
        assert batch["data"].device == WITHOUT_VALUES


@pytest.mark.usefixtures("valueless_noise")
@pytest.mark.parametrize("recipe", ["default", "strong", "elastic"])
@pytest.mark.parametrize("patch_size", PATCHES)
def test_with_the_cases_on_the_device_only_parameters_are_copied_there(
    patch_size: tuple[int, ...], recipe: str
) -> None:
    copied = {}
    for place in ("ram", "device"):
        loader = make_loader(patch_size, recipe, place)
        loader.batch(0, 0)  # opens the case
        with CountingCopies() as count:
            loader.batch(0, 1)
        copied[place] = count.copied_bytes
    assert copied["device"] < copied["ram"] / 4


@pytest.mark.parametrize("recipe", ["default", "strong", "elastic"])
@pytest.mark.parametrize("patch_size", PATCHES)
def test_no_transform_calls_an_operation_that_waits(patch_size: tuple[int, ...], recipe: str) -> None:
    chosen = build_recipe(recipe, patch_size, masked_channels=[1])
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.normal(size=(8, 2, *patch_size)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(-1, 3, (8, 1, *patch_size)).astype(np.int16))
    draws = [
        chosen.draw(lambda name, index=index: generator(1, name, index), (2, *patch_size))  # type: ignore[misc]
        for index in range(8)
    ]
    with Forbidding():
        samples = chosen.apply(Samples(images=images, labels=labels), draws)
    assert samples.images.shape == images.shape


class Looks:
    """A transform that reads a value."""

    def draw(self, rng: np.random.Generator, shape: Any) -> Params | None:
        return {}

    def apply(self, samples: Samples, draws: Any) -> Samples:
        return Samples(images=samples.images / float(samples.images.max()), labels=samples.labels)


def test_the_tests_above_notice_a_transform_that_reads() -> None:
    recipe = Recipe(steps=(Step(name="looks", transform=Looks()),))
    samples = Samples(images=torch.ones(1, 1, 4, 4), labels=torch.zeros(1, 1, 4, 4, dtype=torch.int16))
    with pytest.raises(Reading), Forbidding():
        Looks().apply(samples, [{}])
    nowhere = Samples(images=samples.images.to(WITHOUT_VALUES), labels=samples.labels.to(WITHOUT_VALUES))
    with pytest.raises(ConfigError, match=r"'looks': Looks.apply failed with RuntimeError: .*item\(\)"):
        recipe.apply(nowhere, [{"looks": {}}])
