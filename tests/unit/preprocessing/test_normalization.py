"""Intensity normalisation (nnU-Net behaviour 6.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from segwright.core.errors import ConfigError, ImageError, PlanError
from segwright.preprocessing.normalization import SCHEMES, normalize, normalized_view

STATISTICS = {"0": {"percentile_00_5": -1.0, "percentile_99_5": 5.0, "mean": 1.0, "std": 2.0}}


def channel(*values: float) -> npt.NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32).reshape(1, 1, 1, -1)


def run(image: Any, scheme: str, *, label: Any = None, statistics: Any = STATISTICS) -> list[float]:
    result = normalize(image, [scheme], [label is not None], label, statistics)
    assert result.dtype == np.float32
    return [round(value, 6) for value in result.ravel().tolist()]


def double(values: Any, mask: Any, intensities: Any) -> Any:
    return values * 2


def test_zscore() -> None:
    assert run(channel(1, 3), "ZScoreNormalization") == [-1, 1]


def test_zscore_in_the_mask_leaves_the_outside_alone() -> None:
    label = np.array([-1, 0, 2], dtype=np.int16).reshape(1, 1, 1, 3)
    assert run(channel(0, 1, 3), "ZScoreNormalization", label=label) == [0, -1, 1]


def test_zscore_of_an_empty_mask_changes_nothing() -> None:
    label = np.full((1, 1, 1, 2), -1, dtype=np.int16)
    assert run(channel(0, 0), "ZScoreNormalization", label=label) == [0, 0]


def test_zscore_of_a_constant_is_zero() -> None:
    assert run(channel(7, 7), "ZScoreNormalization") == [0, 0]


def test_zscore_is_accurate_far_from_zero() -> None:
    values = 1e6 + np.random.default_rng(0).normal(size=100_000)
    result = normalize(channel(*values), ["ZScoreNormalization"], [False], None, {})
    assert abs(float(result.mean(dtype=np.float64))) < 1e-3
    assert abs(float(result.std(dtype=np.float64)) - 1) < 1e-3


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e-9, 1e-3, 1e15, 1e29])
@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "RescaleTo01Normalization", "CTNormalization"])
def test_the_unit_of_intensities_does_not_matter(scheme: str, factor: float) -> None:
    usual = channel(0, 1, 2, 5)
    statistics = {"0": {key: value * factor for key, value in STATISTICS["0"].items()}}
    scaled = (usual.astype(np.float64) * factor).astype(np.float32)
    assert run(scaled, scheme, statistics=statistics) == pytest.approx(run(usual, scheme), abs=2e-6)


@pytest.mark.parametrize("value", [0, 1e-9, 0.1, 1000, 1e25])
@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "RescaleTo01Normalization"])
def test_a_flat_image_stays_flat_whatever_its_value(scheme: str, value: float) -> None:
    assert run(channel(*[value] * 7), scheme) == [0] * 7


def test_ct_clips_to_the_dataset() -> None:
    assert run(channel(-100, 1, 100), "CTNormalization") == [-1, 0, 2]


def test_no_normalization() -> None:
    assert run(channel(-3, 4), "NoNormalization") == [-3, 4]


def test_rescale_to_0_1() -> None:
    assert run(channel(2, 3, 6), "RescaleTo01Normalization") == [0, 0.25, 1]


def test_rgb_to_0_1() -> None:
    assert run(channel(0, 51, 255), "RGBTo01Normalization") == [0, 0.2, 1]


def test_rgb_out_of_range_is_refused() -> None:
    with pytest.raises(ImageError, match="0 to 255, found 0 to 300; choose another channel name"):
        run(channel(0, 300), "RGBTo01Normalization")


def test_own_scheme_by_reference() -> None:
    assert run(channel(1, 2), f"{__name__}:double") == [2, 4]


def test_the_input_is_not_changed() -> None:
    for scheme in ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization"):
        image = channel(1, 2, 9)
        result = normalize(image, [scheme], [False], None, STATISTICS)
        result += 1
        assert image.ravel().tolist() == [1, 2, 9]


def test_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ZScoreNormalization'"):
        run(channel(1), "ZScoreNormalisation")


def test_missing_statistics_name_the_channel() -> None:
    with pytest.raises(PlanError, match="channel 0 needs 'percentile_00_5'"):
        run(channel(1), "CTNormalization", statistics={})


def test_a_plan_for_other_channels_is_refused() -> None:
    with pytest.raises(PlanError, match="the plan normalises 2 channels, the image has 1"):
        normalize(channel(1), ["NoNormalization"] * 2, [False] * 2, None, {})


@pytest.mark.parametrize("scheme", SCHEMES.names())
def test_a_view_gives_what_normalising_all_of_it_gives(scheme: str) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (6, 7, 5, 2)).astype(np.float32).transpose(3, 1, 0, 2)
    statistics = {"0": STATISTICS["0"], "1": {**STATISTICS["0"], "std": 0.3}}
    expected = normalize(image, [scheme] * 2, [False] * 2, None, statistics)
    view = normalized_view(image, [scheme] * 2, [False] * 2, statistics)
    assert view is not None
    assert (view.shape, view.ndim) == (expected.shape, expected.ndim)
    assert np.array_equal(np.asarray(view), expected)
    for where in ((slice(None), slice(1, 4), slice(2, 6), slice(0, 5)), (slice(None), 3, slice(1, 3))):
        part = view[where]
        assert np.array_equal(part, expected[where])
        assert part.flags.c_contiguous
        assert part.dtype == np.float32


def test_what_needs_all_of_an_image_has_no_view() -> None:
    assert normalized_view(channel(1, 2), [f"{__name__}:double"], [False], {}) is None
    assert normalized_view(channel(1, 2), ["ZScoreNormalization"], [True], {}) is None


def test_a_view_refuses_what_normalising_refuses() -> None:
    with pytest.raises(ImageError, match="0 to 255, found 0 to 300"):
        normalized_view(channel(0, 300), ["RGBTo01Normalization"], [False], {})
    with pytest.raises(PlanError, match="channel 0 needs 'percentile_00_5'"):
        normalized_view(channel(1), ["CTNormalization"], [False], {})
