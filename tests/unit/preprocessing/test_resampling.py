"""Resampling of images, logits and label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from segwright.core.errors import ConfigError, PlanError
from segwright.preprocessing.operators import axis_operator, nearest_indices
from segwright.preprocessing.resampling import (
    DEFAULT_FUNCTION,
    NO_RESAMPLING,
    TORCH_FUNCTION,
    VolumeResampler,
    resample_image,
    resample_label,
    separate_axis,
)

ISOTROPIC = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
THICK = ((5.0, 1.0, 1.0), (3.0, 0.8, 1.2))
CUBIC: dict[str, Any] = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LINEAR: dict[str, Any] = {**CUBIC, "order": 1}
SHAPES = [
    ((9, 11, 8), (14, 7, 8)),
    ((9, 11, 8), (9, 22, 16)),
    ((8, 8, 8), (4, 4, 4)),
    ((1, 10, 12), (1, 15, 7)),
    ((5, 1, 9), (7, 1, 4)),
]


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def blobs(shape: tuple[int, ...], num_labels: int = 4) -> npt.NDArray[np.int16]:
    fields = [ndimage.gaussian_filter(noise(*shape, num_labels)[..., i], 1.2) for i in range(num_labels)]
    return (np.argmax(fields, axis=0) - 1).astype(np.int16)


def zoomed(array: npt.NDArray[Any], shape: tuple[int, ...], order: int) -> npt.NDArray[np.float64]:
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


@pytest.mark.parametrize(("old", "new"), SHAPES)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_volume_equals_scipy_zoom_clipped(old: tuple[int, ...], new: tuple[int, ...], order: int) -> None:
    image = noise(1, *old)
    actual = resample_image(image, new, *ISOTROPIC, DEFAULT_FUNCTION, {**CUBIC, "order": order})
    expected = zoomed(image[0], new, order).clip(image.min(), image.max())
    np.testing.assert_allclose(actual[0], expected, atol=2e-5)


def test_long_axes_are_resized_in_bands() -> None:
    image = noise(1, 3, 200, 150)
    actual = resample_image(image, (3, 150, 210), *ISOTROPIC, DEFAULT_FUNCTION, CUBIC)
    np.testing.assert_allclose(actual[0], zoomed(image[0], (3, 150, 210), 3).clip(image.min(), image.max()), atol=2e-5)


def test_thick_slices_are_resized_one_by_one_and_then_copied() -> None:
    image = noise(1, 6, 10, 12)
    actual = resample_image(image, (10, 13, 9), *THICK, DEFAULT_FUNCTION, CUBIC)
    slices = [zoomed(plane, (13, 9), 3).clip(plane.min(), plane.max()) for plane in image[0]]
    np.testing.assert_allclose(actual[0], np.stack(slices)[nearest_indices(6, 10)], atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_coarse_axis_may_be_any(axis: int) -> None:
    order = [axis, *(other for other in range(3) if other != axis)]
    image, back = noise(1, 6, 10, 12), np.argsort(order)
    wanted, spacings = (4, 13, 9), THICK
    expected = resample_image(image, wanted, *spacings, DEFAULT_FUNCTION, CUBIC)[0].transpose(back)
    moved = [tuple(np.asarray(values)[back].tolist()) for values in (wanted, *spacings)]
    turned = np.ascontiguousarray(image[0].transpose(back)[None])
    actual = resample_image(turned, moved[0], moved[1], moved[2], DEFAULT_FUNCTION, CUBIC)
    np.testing.assert_allclose(actual[0], expected, atol=2e-5)


def test_cubic_overshoot_is_clipped_to_the_channel() -> None:
    image = np.zeros((2, 4, 4, 12), dtype=np.float32)
    image[0, ..., 6:], image[1, ..., 6:] = 1, 7
    result = resample_image(image, (4, 4, 40), *ISOTROPIC, DEFAULT_FUNCTION, CUBIC)
    assert [(channel.min(), channel.max()) for channel in result] == [(0, 1), (0, 7)]


def test_equal_shapes_change_nothing() -> None:
    image = noise(2, 4, 5, 6)
    assert np.array_equal(resample_image(image, (4, 5, 6), *THICK, DEFAULT_FUNCTION, CUBIC), image)


def test_no_resampling_ignores_the_wanted_shape() -> None:
    image, label = noise(1, 4, 5, 6), blobs((4, 5, 6))[None]
    assert np.array_equal(resample_image(image, (8, 8, 8), *ISOTROPIC, NO_RESAMPLING, {}), image)
    assert np.array_equal(resample_label(label, (8, 8, 8), *ISOTROPIC, NO_RESAMPLING, {}), label)


def test_torch_variant_is_trilinear() -> None:
    image = torch.from_numpy(noise(2, 6, 7, 8))
    actual = resample_image(image, (9, 5, 12), *ISOTROPIC, TORCH_FUNCTION, {"force_separate_z": False})
    expected = torch.nn.functional.interpolate(image[None], (9, 5, 12), mode="trilinear")[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_tensors_and_half_precision_are_accepted() -> None:
    logits = torch.from_numpy(noise(3, 6, 7, 8)).half()
    result = resample_image(logits, (9, 5, 12), *ISOTROPIC, DEFAULT_FUNCTION, LINEAR)
    assert (type(result), result.dtype, result.shape) == (torch.Tensor, torch.float32, (3, 9, 5, 12))


def test_a_read_only_array_is_accepted() -> None:
    image = noise(1, 4, 5, 6)
    image.flags.writeable = False
    assert resample_image(image, (4, 5, 9), *ISOTROPIC, DEFAULT_FUNCTION, CUBIC).shape == (1, 4, 5, 9)


@pytest.mark.parametrize("spacings", [ISOTROPIC, THICK, ((1.0, 5.0, 1.0), (1.0, 5.0, 1.0))])
@pytest.mark.parametrize(("function", "kwargs"), [(DEFAULT_FUNCTION, LINEAR), (TORCH_FUNCTION, {})])
def test_slabs_are_exactly_the_whole(spacings: Any, function: str, kwargs: dict[str, Any]) -> None:
    logits = torch.from_numpy(noise(3, 7, 9, 8))
    resampler = VolumeResampler((7, 9, 8), (12, 6, 17), *spacings, function, kwargs)
    slabs = [resampler.slab(logits, start, min(start + 5, 12)) for start in range(0, 12, 5)]
    whole = resample_image(logits, (12, 6, 17), *spacings, function, kwargs)
    assert torch.equal(torch.cat(slabs, dim=1), whole)


@pytest.mark.parametrize("spacings", [ISOTROPIC, THICK])
def test_cubic_slabs_agree_with_the_whole(spacings: Any) -> None:
    logits = torch.from_numpy(noise(2, 70, 9, 8))
    resampler = VolumeResampler((70, 9, 8), (100, 6, 17), *spacings, DEFAULT_FUNCTION, CUBIC)
    slabs = [resampler.slab(logits, start, min(start + 30, 100)) for start in range(0, 100, 30)]
    whole = resample_image(logits, (100, 6, 17), *spacings, DEFAULT_FUNCTION, CUBIC)
    torch.testing.assert_close(torch.cat(slabs, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("current", "new", "force", "expected"),
    [
        ((5, 1, 1), (1, 1, 1), None, 0),
        ((1, 1, 1), (1, 1, 4), None, 2),
        ((3, 1, 1), (3, 1, 1), None, None),  # the threshold itself is not anisotropic
        ((0.24, 1.25, 1.25), (1, 1, 1), None, None),
        ((0.24, 1.25, 1.2500001), (1, 1, 1), None, 2),
        ((5, 1, 1), (1, 1, 1), False, None),
        ((2, 1, 1), (1, 1, 1), True, 0),
    ],
)
def test_separate_axis(current: Any, new: Any, force: bool | None, expected: int | None) -> None:
    assert separate_axis(current, new, force) == expected


def majority(label: npt.NDArray[np.int16], shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """The rule as stated: resize every indicator, take the largest, ties to the nearest voxel, then the smallest."""
    values = np.unique(label)
    scores = np.stack([zoomed(label == value, shape, 1).clip(0, 1) for value in values])
    result = values[scores.argmax(axis=0)]
    nearest = label[np.ix_(*[nearest_indices(old, new) for old, new in zip(label.shape, shape, strict=True)])]
    tied = (scores == scores.max(axis=0)) & (values[:, None, None, None] == nearest)
    return np.where(tied.any(axis=0), nearest, result)


@pytest.mark.parametrize(("old", "new"), [*SHAPES, ((12, 12, 12), (24, 24, 24)), ((12, 12, 12), (16, 9, 18))])
def test_labels_follow_the_majority(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    label = blobs(old)
    actual = resample_label(label[None], new, *ISOTROPIC, DEFAULT_FUNCTION, LINEAR)
    assert actual.dtype == label.dtype
    assert np.array_equal(actual[0], majority(label, new))


def test_a_tie_goes_to_the_nearest_voxel() -> None:
    label = np.array([3, 1, 1, 3, 2, 0], dtype=np.int16).reshape(1, 1, 1, 6)
    result = resample_label(label, (1, 1, 3), *ISOTROPIC, DEFAULT_FUNCTION, LINEAR)
    assert result.ravel().tolist() == [1, 3, 0]


def test_classic_rule_prefers_the_larger_label_with_half_the_weight() -> None:
    label = np.array([3, 1, 1, 3, 2, 0], dtype=np.int16).reshape(1, 1, 1, 6)
    result = resample_label(label, (1, 1, 3), *ISOTROPIC, DEFAULT_FUNCTION, {**LINEAR, "label_rule": "classic"})
    assert result.ravel().tolist() == [3, 3, 2]


def test_label_order_zero_is_nearest() -> None:
    label = blobs((6, 7, 8))
    result = resample_label(label[None], (9, 7, 4), *ISOTROPIC, DEFAULT_FUNCTION, {**LINEAR, "order": 0})
    assert np.array_equal(result[0], label[np.ix_(nearest_indices(6, 9), range(7), nearest_indices(8, 4))])


@pytest.mark.parametrize("kwargs", [{**LINEAR, "order": 3}, {**LINEAR, "order_z": 1}])
def test_other_label_orders_keep_large_structures(kwargs: dict[str, Any]) -> None:
    label = np.zeros((1, 6, 12, 12), dtype=np.int16)
    label[:, 1:5, 2:10, 2:10] = 2
    result = resample_label(label, (9, 18, 18), *THICK, DEFAULT_FUNCTION, kwargs)
    assert result.shape == (1, 9, 18, 18)
    assert set(np.unique(result)) == {0, 2}
    assert (result[0, 3:6, 6:12, 6:12] == 2).all()


def test_label_tensor_in_tensor_out() -> None:
    label = torch.from_numpy(blobs((6, 7, 8))[None])
    result = resample_label(label, (9, 7, 4), *ISOTROPIC, TORCH_FUNCTION, {"is_seg": True})
    assert (type(result), result.dtype) == (torch.Tensor, torch.int16)


def test_operator_is_cached_and_read_only() -> None:
    operator = axis_operator(10, 7, 3)
    assert operator is axis_operator(10, 7, 3)
    with pytest.raises(ValueError, match="read-only"):
        operator[0, 0] = 1


def test_unknown_function_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="did you mean 'resample_torch_fornnunet'"):
        resample_image(noise(1, 4, 4, 4), (5, 5, 5), *ISOTROPIC, "resample_torch_for_nnunet", {})


@pytest.mark.parametrize(
    ("function", "kwargs"),
    [(DEFAULT_FUNCTION, {"order": 6}), (DEFAULT_FUNCTION, {"label_rule": "x"}), (TORCH_FUNCTION, {"mode": "area"})],
)
def test_unsupported_arguments_are_refused(function: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="change the plan"):
        resample_image(noise(1, 4, 4, 4), (5, 5, 5), *ISOTROPIC, function, kwargs)
