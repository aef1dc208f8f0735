"""Tile starts and the Gaussian weights."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from segwright.core.errors import ConfigError
from segwright.inference.window.tiling import HALF_QUANTUM, axis_starts, gaussian_map, rolling_axis, tile_starts, tiles


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [(110, 64, (0, 23, 46)), (200, 128, (0, 36, 72)), (129, 128, (0, 1)), (64, 64, (0,))],
)
def test_axis_starts_are_those_of_the_reference(size: int, patch: int, expected: tuple[int, ...]) -> None:
    assert axis_starts(size, patch) == expected


@pytest.mark.parametrize("step", [0.0, -0.5, 1.01])
def test_a_step_outside_the_patch_is_refused(step: float) -> None:
    with pytest.raises(ConfigError, match=r"outside \(0, 1\]"):
        axis_starts(100, 64, step)


def test_a_2d_patch_visits_every_slice() -> None:
    assert tile_starts((3, 10, 8), (8, 8)) == ((0, 1, 2), (0, 2), (0,))
    assert len(tiles((3, 10, 8), (8, 8))) == 6


@pytest.mark.parametrize("patch", [(16, 12, 20), (7, 9), (128, 128, 128)])
def test_gaussian_is_the_filtered_impulse_with_peak_ten(patch: tuple[int, ...]) -> None:
    impulse = np.zeros(patch)
    impulse[tuple(size // 2 for size in patch)] = 1
    filtered = gaussian_filter(impulse, [size / 8 for size in patch], mode="constant", cval=0)
    expected = filtered / filtered.max() * 10
    result = gaussian_map(patch)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.maximum(expected, HALF_QUANTUM), rtol=2.0**-11, atol=HALF_QUANTUM / 2)
    np.testing.assert_array_equal(result, result.astype(np.float16))
    assert result[tuple(size // 2 for size in patch)] == 10
    assert result.min() > 0


@pytest.mark.parametrize(
    ("size", "patch", "axis"),
    [
        ((20, 30, 40), (10, 10, 10), 2),
        ((40, 30, 40), (10, 10, 10), 0),
        ((40, 60, 60), (10, 30, 30), 0),
        ((8, 8, 8), (10, 9, 8), 0),
        ((8, 90, 90), (9, 9), 0),
    ],
)
def test_the_window_rolls_where_it_holds_least(size: tuple[int, ...], patch: tuple[int, ...], axis: int) -> None:
    assert rolling_axis(size, patch) == axis
