"""Every drawn parameter has its distribution (nnU-Net behaviour 10) and, where nnU-Net could be asked, nnU-Net's own.

Draws come from fixed keys as in a training, so the tests are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from segwright.augmentation.cascade import OPERATORS, BinaryOperators, ComponentRemoval
from segwright.augmentation.elastic import Elastic
from segwright.augmentation.intensity import GaussianBlur
from segwright.augmentation.recipe import Recipe, build_recipe, default_recipe
from segwright.augmentation.spatial import Affine
from segwright.core.seeds import generator

pytestmark = pytest.mark.slow

NUM = 5000
SHAPE_3D, SHAPE_2D, SHAPE_FLAT = (2, 32, 32, 32), (2, 32, 32), (2, 8, 40, 40)
GOLDEN = Path(__file__).parents[2] / "golden" / "augmentation" / "draws.npz"

Values = npt.NDArray[np.float64]
Distribution = Callable[[Any], Any]


def uniform(low: float, high: float) -> Distribution:
    return stats.uniform(low, high - low).cdf


def around_one(low: float, high: float) -> Distribution:
    """Below and above one equally often."""
    return mixture(uniform(low, 1), uniform(1, high))


def mixture(first: Distribution, second: Distribution) -> Distribution:
    return lambda value: (first(value) + second(value)) / 2


def step(recipe: Recipe, name: str) -> Any:
    return next(each.transform for each in recipe.steps if each.name == name)


def draws(transform: Any, shape: tuple[int, ...] = SHAPE_3D, count: int = NUM) -> list[Any]:
    return [transform.draw(generator(7, type(transform).__name__, index), shape) for index in range(count)]


def values(transform: Any, name: str, shape: tuple[int, ...] = SHAPE_3D) -> Values:
    """Return `NUM` values that are no placeholders of channels left alone."""
    always = {
        field: 1.0
        for field in ("probability", "channel_probability", "per_label")
        if field in type(transform).__dataclass_fields__
    }
    found = [np.asarray(draw[name], dtype=float) for draw in draws(replace(transform, **always), shape)]
    if isinstance(transform, GaussianBlur) and not transform.sigma_per_axis:
        assert all((each == each[:, :1]).all() for each in found)
        found = [each[:, 0] for each in found]
    return np.concatenate([np.ravel(each) for each in found])[:NUM]


DEFAULT, STRONG = default_recipe((32, 32, 32)), build_recipe("strong", (32, 32, 32))
BUMP_SIZE = 32.0

PARAMETERS: dict[str, tuple[Any, str, Distribution]] = {
    "noise": (step(DEFAULT, "noise"), "sigma", uniform(0, 0.1)),
    "blur": (step(DEFAULT, "blur"), "sigma", uniform(0.5, 1)),
    "brightness": (step(DEFAULT, "brightness"), "factor", around_one(0.75, 1.25)),
    "contrast": (step(DEFAULT, "contrast"), "factor", around_one(0.75, 1.25)),
    "low_resolution": (step(DEFAULT, "low_resolution"), "factor", uniform(0.5, 1)),
    "gamma_inverted": (step(DEFAULT, "gamma_inverted"), "gamma", around_one(0.7, 1.5)),
    "gamma": (step(DEFAULT, "gamma"), "gamma", around_one(0.7, 1.5)),
    "strong blur": (step(STRONG, "blur"), "sigma", uniform(0.3, 1.5)),
    "strong contrast": (step(STRONG, "contrast"), "factor", around_one(0.5, 2)),
    "strong low_resolution": (step(STRONG, "low_resolution"), "factor", uniform(0.25, 1)),
    "shift": (step(STRONG, "shift"), "shift", stats.norm(0, 0.5).cdf),
    "gradient height": (step(STRONG, "gradient"), "height", mixture(uniform(-5, -1), uniform(1, 5))),
    "gradient centre": (step(STRONG, "gradient"), "centre", uniform(-0.5 * BUMP_SIZE, 1.5 * BUMP_SIZE)),
    "gradient width": (step(STRONG, "gradient"), "sigma", stats.loguniform(BUMP_SIZE // 6, BUMP_SIZE).cdf),
    "local gamma": (step(STRONG, "local_gamma"), "gamma", mixture(uniform(0.01, 0.8), uniform(1.5, 4))),
    "sharpen": (step(STRONG, "sharpen"), "strength", uniform(0.1, 1)),
    "elastic spacing": (Elastic(), "spacing", uniform(0.1, 0.4)),
    "elastic strength": (Elastic(), "strength", uniform(0, 0.15)),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_follow_the_specification(name: str) -> None:
    transform, parameter, distribution = PARAMETERS[name]
    assert stats.kstest(values(transform, parameter), distribution).pvalue > 0.01


@pytest.mark.parametrize("size", [40, 56, 96])
def test_a_bumps_least_width_is_a_whole_number_of_voxels(size: int) -> None:
    sigma = values(step(STRONG, "gradient"), "sigma", (1, size, size, size))
    assert stats.kstest(sigma, stats.loguniform(size // 6, size).cdf).pvalue > 0.01


def test_half_of_the_strong_contrasts_keep_the_range_and_half_of_the_channels_are_left() -> None:
    found = [draw for draw in draws(replace(step(STRONG, "contrast"), probability=1.0)) if draw is not None]
    assert_binomial(len(found), NUM, 0.75)
    assert_binomial(sum(bool(draw["clamped"]) for draw in found), len(found), 0.5)
    assert_binomial(sum(bool((draw["factor"] != 1).all()) for draw in found), NUM, 0.25)
    assert all(draw["clamped"] for draw in draws(replace(step(DEFAULT, "contrast"), probability=1.0)))


def matrices(affine: Affine, dims: int, **always: float) -> list[Any]:
    changed = replace(affine, **always)
    return [changed.draw(generator(3, "spatial", index), dims) for index in range(NUM)]


def angles(matrix: Any) -> tuple[float, ...]:
    if len(matrix) == 2:
        return (np.arctan2(matrix[1, 0], matrix[0, 0]),)
    about_first = np.arctan2(matrix[2, 1], matrix[2, 2])
    return about_first, -np.arcsin(np.clip(matrix[2, 0], -1, 1)), np.arctan2(matrix[1, 0], matrix[0, 0])


@pytest.mark.parametrize(
    ("patch_size", "degrees"), [((32, 32, 32), 30), ((8, 40, 40), 180), ((40, 40), 180), ((60, 32), 15)]
)
def test_angles_are_uniform_in_the_range_of_the_patch(patch_size: tuple[int, ...], degrees: float) -> None:
    affine = default_recipe(patch_size).spatial
    assert affine is not None
    drawn = matrices(affine, len(patch_size), rotation_probability=1.0, scaling_probability=0.0)
    parts = [matrix[1:, 1:] if affine.in_plane else matrix for matrix in drawn]
    limit = np.radians(degrees)
    for column in np.array([angles(part) for part in parts]).T:
        assert stats.kstest(column, uniform(-limit, limit)).pvalue > 0.01


@pytest.mark.parametrize("dims", [2, 3])
def test_scaling_is_uniform_and_equal_along_all_axes(dims: int) -> None:
    affine = default_recipe((32,) * dims).spatial
    assert affine is not None
    drawn = np.array(matrices(affine, dims, rotation_probability=0.0, scaling_probability=1.0))
    factors = drawn[:, 0, 0]
    assert stats.kstest(factors, uniform(0.7, 1.4)).pvalue > 0.01
    np.testing.assert_allclose(drawn, factors[:, None, None] * np.eye(dims))


def test_the_strong_recipe_scales_each_axis_for_itself_and_keeps_half_of_the_angles() -> None:
    affine = STRONG.spatial
    assert affine is not None
    scaled = np.array(matrices(affine, 3, rotation_probability=0.0, scaling_probability=1.0))
    for axis in range(3):
        assert stats.kstest(scaled[:, axis, axis], uniform(0.7, 1.43)).pvalue > 0.01
    turned = matrices(affine, 3, rotation_probability=1.0, scaling_probability=0.0)
    kept = np.abs(np.array([angles(matrix) for matrix in turned])) > 1e-9
    for column in kept.T:
        assert_binomial(int(column.sum()), NUM, 0.5)


def assert_binomial(hits: int, tries: int, probability: float) -> None:
    """Inside the two-sided 99.9 % bounds."""
    low, high = stats.binom(tries, probability).interval(0.999)
    assert low <= hits <= high, f"{hits} of {tries}, expected {low:.0f} to {high:.0f}"


@pytest.mark.parametrize(("recipe", "rotated", "scaled"), [("default", 0.2, 0.2), ("strong", 0.4, 0.2)])
def test_rotation_and_scaling_are_decided_apart(recipe: str, rotated: float, scaled: float) -> None:
    affine = build_recipe(recipe, (32, 32, 32)).spatial
    assert affine is not None
    drawn = [affine.draw(generator(5, "spatial", index), 3) for index in range(NUM)]
    is_scaled = [matrix is not None and abs(abs(np.linalg.det(matrix)) - 1) > 1e-9 for matrix in drawn]
    assert_binomial(sum(is_scaled), NUM, scaled)
    # a matrix without scaling is a rotation, even if the strong recipe drops all of its angles
    is_rotated = [matrix is not None and not flag for matrix, flag in zip(drawn, is_scaled, strict=True)]
    assert_binomial(sum(is_rotated), NUM, rotated * (1 - scaled))
    assert_binomial(sum(matrix is None for matrix in drawn), NUM, (1 - rotated) * (1 - scaled))


@pytest.mark.parametrize(
    ("recipe", "name", "probability"),
    [
        ("default", "noise", 0.1),
        ("default", "blur", 0.2 * 0.75),  # two channels, each with 0.5: one in four times none
        ("default", "brightness", 0.15),
        ("default", "contrast", 0.15),
        ("default", "low_resolution", 0.25 * 0.75),
        ("default", "gamma_inverted", 0.1),
        ("default", "gamma", 0.3),
        ("default", "mirror", 7 / 8),
        ("strong", "blur", 0.2 * 0.75),
        ("strong", "noise", 0.1),
        ("strong", "shift", 0.1 * 0.75),
        ("strong", "contrast", 0.2 * 0.75),
        ("strong", "low_resolution", 0.15 * 0.75),
        ("strong", "gamma_inverted", 0.1),
        ("strong", "gamma", 0.1),
        ("strong", "blank", 0.4 * 0.75),
        ("strong", "gradient", 0.3 * 0.75),
        ("strong", "local_gamma", 0.3 * 0.75),
        ("strong", "sharpen", 0.2 * 0.75),
    ],
)
def test_transforms_are_applied_as_often_as_specified(recipe: str, name: str, probability: float) -> None:
    transform = step(build_recipe(recipe, (32, 32, 32)), name)
    found = [transform.draw(generator(11, name, index), SHAPE_3D) for index in range(NUM)]
    assert_binomial(sum(draw is not None for draw in found), NUM, probability)


@pytest.mark.parametrize("shape", [SHAPE_3D, SHAPE_2D, SHAPE_FLAT])
def test_each_axis_is_mirrored_half_of_the_time(shape: tuple[int, ...]) -> None:
    mirror = step(default_recipe(shape[1:]), "mirror")
    flips = np.array([np.zeros(len(shape) - 1) if draw is None else draw["flips"] for draw in draws(mirror, shape)])
    for column in flips.T:
        assert_binomial(int(column.sum()), NUM, 0.5)


@pytest.mark.parametrize("name", ["blur", "low_resolution"])
def test_channels_are_chosen_apart(name: str) -> None:
    found = [draw for draw in draws(replace(step(DEFAULT, name), probability=1.0)) if draw is not None]
    key, idle = ("sigma", 0.0) if name == "blur" else ("factor", 1.0)
    chosen = np.array([np.reshape(draw[key], (2, -1))[:, 0] != idle for draw in found])
    assert_binomial(len(found), NUM, 0.75)
    assert_binomial(int(chosen.all(axis=1).sum()), NUM, 0.25)


def test_cascade_draws_follow_the_specification() -> None:
    num_labels = 3
    rngs = [generator(1, "cascade", index) for index in range(NUM)]
    operators = [BinaryOperators().draw(rng, num_labels) for rng in rngs]
    removals = [ComponentRemoval().draw(generator(2, "cascade", index), num_labels) for index in range(NUM)]
    drawn = [draw for draw in operators if draw is not None]
    assert_binomial(len(drawn), NUM, 0.4)
    assert_binomial(sum(draw is not None for draw in removals), NUM, 0.2)
    many = [BinaryOperators(probability=1.0).draw(generator(3, "cascade", index), num_labels) for index in range(NUM)]
    radii = np.concatenate([draw["radius"] for draw in many if draw is not None])[:NUM]
    assert stats.kstest(radii, uniform(1, 8)).pvalue > 0.01
    kinds = np.concatenate([draw["operator"] for draw in many if draw is not None])
    assert stats.chisquare(np.bincount(kinds, minlength=len(OPERATORS))).pvalue > 0.01
    chosen = np.concatenate([draw["chosen"] for draw in many if draw is not None])
    assert_binomial(int(chosen.sum()), chosen.size, 0.5)
    first = [int(draw["order"][0]) for draw in many if draw is not None]
    assert stats.chisquare(np.bincount(first)).pvalue > 0.01


@pytest.fixture(scope="module")
def oracle() -> Any:
    return np.load(GOLDEN)


@pytest.mark.parametrize(
    "name", ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"]
)
def test_parameters_are_distributed_as_nnunets(oracle: Any, name: str) -> None:
    transform, parameter, _ = PARAMETERS[name]
    assert stats.ks_2samp(values(transform, parameter), oracle[f"value {name}"]).pvalue > 0.01


@pytest.mark.parametrize("dims", [2, 3])
def test_angles_and_scales_are_distributed_as_nnunets(oracle: Any, dims: int) -> None:
    affine = default_recipe((16,) * dims).spatial
    assert affine is not None
    turned = matrices(affine, dims, rotation_probability=1.0, scaling_probability=0.0)
    for axis, column in enumerate(np.array([angles(matrix) for matrix in turned]).T):
        assert stats.ks_2samp(column, oracle[f"value {dims}d angle {axis}"]).pvalue > 0.01
    scaled = np.array(matrices(affine, dims, rotation_probability=0.0, scaling_probability=1.0))[:, 0, 0]
    assert stats.ks_2samp(scaled, oracle[f"value {dims}d scale"]).pvalue > 0.01


def test_nnunets_own_counts_lie_in_the_same_bounds(oracle: Any) -> None:
    counts = dict(zip(oracle["count_names"].tolist(), oracle["counts"].tolist(), strict=True))
    tries = int(oracle["num_draws"])
    for name in ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"):
        assert_binomial(counts[f"{name} applied"], tries, step(DEFAULT, name).probability)
    for name in ("blur", "low_resolution"):
        assert_binomial(counts[f"{name} on 2 of 2 channels"], tries, 0.25)
        assert_binomial(counts[f"{name} on 0 of 2 channels"], tries, 0.25)
    for axis in range(3):
        assert_binomial(counts[f"3d mirror {axis}"], tries, step(DEFAULT, "mirror").probability)
    for dims in (2, 3):
        assert_binomial(len(oracle[f"value {dims}d scale"]), tries, 0.2)
        assert_binomial(len(oracle[f"value {dims}d angle 0"]), tries, 0.2)
    assert counts["low_resolution unequal axes"] == 0
