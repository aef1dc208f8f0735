"""Each intensity transform with given parameters equals the plain formula, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from scipy import ndimage, stats

from segwright.augmentation.intensity import (
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    LowResolution,
)
from segwright.augmentation.operators import gaussian_taps, low_resolution_operator
from segwright.augmentation.transform import Samples, Transform

SHAPE_3D = (3, 2, 9, 12, 7)
SHAPE_2D = (3, 2, 16, 11)
SHAPES = [SHAPE_3D, SHAPE_2D]


def make_samples(shape: Sequence[int] = SHAPE_3D, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(1.0, 2.0, shape).astype(np.float32))
    return Samples(images=images, labels=torch.zeros((shape[0], 1, *shape[2:]), dtype=torch.int16))


def assert_per_channel(transform: Transform, samples: Samples, draws: list[dict[str, Any]], reference: Any) -> None:
    """Compare with `reference(channel image, draw, channel)` and check that nothing was modified in place."""
    before = samples.images.clone()
    result = transform.apply(samples, draws)
    for index, draw in enumerate(draws):
        for channel in range(before.shape[1]):
            expected = reference(before[index, channel].numpy(), draw, channel)
            np.testing.assert_allclose(result.images[index, channel].numpy(), expected, atol=1e-4)
    assert torch.equal(samples.images, before)
    assert result.labels is samples.labels


def per_channel(name: str, *values: Sequence[float]) -> list[dict[str, Any]]:
    return [{name: np.array(value)} for value in values]


@pytest.mark.parametrize("shape", SHAPES)
def test_brightness_multiplies_each_channel(shape: tuple[int, ...]) -> None:
    draws = per_channel("factor", [0.8, 1.2], [1.0, 0.75], [1.25, 0.9])
    assert_per_channel(Brightness(), make_samples(shape), draws, lambda image, draw, c: image * draw["factor"][c])


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_stretches_about_the_mean_inside_the_old_range(shape: tuple[int, ...]) -> None:
    def reference(image: Any, draw: Any, channel: int) -> Any:
        stretched = (image - image.mean()) * draw["factor"][channel] + image.mean()
        return stretched.clip(image.min(), image.max())

    draws = per_channel("factor", [0.8, 1.2], [1.0, 0.75], [1.25, 0.9])
    assert_per_channel(Contrast(), make_samples(shape), draws, reference)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clamped", [(True, False, True), (False, False, False)])
def test_contrast_leaves_the_old_range_where_it_is_not_clamped(
    shape: tuple[int, ...], clamped: tuple[bool, ...]
) -> None:
    def reference(image: Any, draw: Any, channel: int) -> Any:
        stretched = (image - image.mean()) * draw["factor"][channel] + image.mean()
        return stretched.clip(image.min(), image.max()) if draw["clamped"] else stretched

    factors = per_channel("factor", [0.8, 1.9], [1.7, 1.0], [1.25, 0.9])
    draws = [{**draw, "clamped": np.asarray(each)} for draw, each in zip(factors, clamped, strict=True)]
    assert_per_channel(Contrast(), make_samples(shape), draws, reference)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_restores_mean_and_deviation(shape: tuple[int, ...], inverted: bool) -> None:
    def reference(image: Any, draw: Any, channel: int) -> Any:
        image = -image.astype(np.float64) if inverted else image.astype(np.float64)
        low, spread = image.min(), np.ptp(image)
        curve = ((image - low) / spread) ** draw["gamma"][channel] * spread + low
        curve = (curve - curve.mean()) * image.std(ddof=1) / curve.std(ddof=1) + image.mean()
        return -curve if inverted else curve

    draws = per_channel("gamma", [0.7, 1.5], [1.0, 1.2], [0.9, 0.8])
    assert_per_channel(Gamma(inverted=inverted), make_samples(shape), draws, reference)


def test_gamma_and_contrast_leave_a_constant_patch_finite() -> None:
    samples = Samples(images=torch.full((1, 1, 4, 4, 4), 3.0), labels=torch.zeros((1, 1, 4, 4, 4), dtype=torch.int16))
    gamma = Gamma().apply(samples, per_channel("gamma", [1.4]))
    contrast = Contrast().apply(samples, per_channel("factor", [1.2]))
    torch.testing.assert_close(gamma.images, samples.images)
    torch.testing.assert_close(contrast.images, samples.images)


@pytest.mark.parametrize(("sigma", "taps"), [(0.5, 3), (0.58, 3), (0.59, 5), (0.9, 5), (0.92, 7), (1.0, 7)])
def test_blur_kernel_has_the_nearest_odd_length(sigma: float, taps: int) -> None:
    assert gaussian_taps(sigma) == taps


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_convolves_chosen_channels_with_reflected_borders(shape: tuple[int, ...]) -> None:
    axes = len(shape) - 2
    sigmas = np.random.default_rng(1).uniform(0.5, 1.0, (shape[0], shape[1], axes))
    sigmas[0, 1] = 0  # this channel stays sharp

    def reference(image: Any, draw: Any, channel: int) -> Any:
        for axis, sigma in enumerate(draw["sigma"][channel]):
            if sigma == 0:
                continue
            half = gaussian_taps(sigma) // 2
            kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
            image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode="mirror")
        return image

    draws = [{"sigma": sigma} for sigma in sigmas]
    assert_per_channel(GaussianBlur(), make_samples(shape), draws, reference)


@pytest.mark.parametrize("fixed_axes", [(), (0,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_low_resolution_samples_nearest_and_interpolates_back(
    shape: tuple[int, ...], fixed_axes: tuple[int, ...]
) -> None:
    mode = "trilinear" if len(shape) == 5 else "bilinear"

    def reference(image: Any, draw: Any, channel: int) -> Any:
        sizes = [
            size if axis in fixed_axes else round(size * draw["factor"][channel])
            for axis, size in enumerate(image.shape)
        ]
        small = functional.interpolate(torch.from_numpy(image)[None, None], size=sizes, mode="nearest-exact")
        return functional.interpolate(small, size=image.shape, mode=mode)[0, 0].numpy()

    draws = per_channel("factor", [0.5, 1.0], [0.73, 0.61], [0.999, 0.87])
    assert_per_channel(LowResolution(fixed_axes=fixed_axes), make_samples(shape), draws, reference)


def test_noise_field_is_white_and_scaled_by_sigma() -> None:
    samples = make_samples((1, 2, 16, 16, 16))
    draws = [{"sigma": np.asarray(0.05), "seed": np.asarray(7)}]
    noise = (GaussianNoise().apply(samples, draws).images - samples.images).flatten(2)[0].numpy() / 0.05
    assert stats.kstest(noise[0], "norm").pvalue > 0.01
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05


def test_noise_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    samples = make_samples((2, 1, 6, 6, 6))
    draws = [{"sigma": np.asarray(0.1), "seed": np.asarray(seed)} for seed in (3, 4)]
    alone = Samples(images=samples.images[1:], labels=samples.labels[1:])
    together = GaussianNoise().apply(samples, draws).images[1:]
    assert torch.equal(GaussianNoise().apply(alone, draws[1:]).images, together)


@pytest.mark.parametrize("size", [56, 96, 128])
def test_every_reduction_samples_the_voxels_that_torch_samples(size: int) -> None:
    line = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(size))
    for reduced in range(1, size + 1):
        small = functional.interpolate(line, size=reduced, mode="nearest-exact")
        expected = functional.interpolate(small, size=size, mode="linear", align_corners=False)
        found = torch.from_numpy(low_resolution_operator(size, reduced).copy()) @ line[0, 0]
        torch.testing.assert_close(found, expected[0, 0], atol=1e-4, rtol=0)
