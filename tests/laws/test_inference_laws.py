"""Laws of the way back: planes in portions, along any axis, give the labels of everything at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.labels import export_planes
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.window.stitching import Planes
from segwright.preprocessing.resampling import resample_image
from tests.inverse_preprocessing import undo_labels

NEAR = 1e-4
"""Two best logits closer than this may be decided either way."""

DEFAULT, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
ORDERS = [[0, 1, 2], [2, 0, 1], [1, 0, 2]]
REGIONS = {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}, "regions_class_order": [1, 2, 3]}


def labels_of(heads: int | None) -> Labels:
    """Return regions for None."""
    if heads is None:
        return Labels.from_dataset_json(REGIONS)
    names = {f"label {value}": value for value in range(1, heads)}
    return Labels.from_dataset_json({"labels": {"background": 0, **names}})


def plan_of(order: list[int], function: str, kwargs: dict[str, Any], spacing: tuple[float, ...]) -> Plan:
    back = [order.index(axis) for axis in range(3)]
    configuration = {
        "data_identifier": "law",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 8, 8],
        "median_image_size_in_voxels": [8.0, 8.0, 8.0],
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": {**kwargs, "is_seg": False},
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": kwargs,
        "architecture": {"network_class_name": "unet", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    return Plan.from_json(
        {
            "dataset_name": "Dataset001_Law",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": order,
            "transpose_backward": back,
            "configurations": {"law": configuration},
            "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
        }
    )


def portions(logits: torch.Tensor, axis: int, sizes: list[int]) -> Iterator[Planes]:
    rolled = logits.movedim(axis + 1, 1)
    start, index = 0, 0
    while start < rolled.shape[1]:
        stop = min(start + sizes[index % len(sizes)], rolled.shape[1])
        yield Planes(start=start, stop=stop, logits=rolled[:, start:stop].clone())
        start, index = stop, index + 1


extents = st.tuples(*[st.integers(1, 17)] * 3)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    old=extents,
    new=extents,
    axis=st.integers(0, 2),
    order=st.sampled_from(ORDERS),
    heads=st.sampled_from([2, 5, 260, None]),
    method=st.sampled_from([(DEFAULT, {"order": 1}), (DEFAULT, {"order": 3}), (DEFAULT, {"order": 0}), (TORCH, {})]),
    coarse=st.sampled_from([(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 5.0)]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    slab_bytes=st.sampled_from([1, 2000, 2**20]),
    seed=st.integers(0, 99),
)
def test_labels_are_those_of_everything_at_once(  # type: ignore[no-untyped-def]
    old, new, axis, order, heads, method, coarse, sizes, slab_bytes, seed
) -> None:
    function, kwargs = method[0], {**method[1], "order_z": 0, "force_separate_z": None} if method[1] else {}
    plan = plan_of(order, function, kwargs, (1.0, 1.0, 1.0))
    configuration, labels = plan.configuration("law"), labels_of(heads)
    provenance = Provenance(
        properties={},
        shape_before_cropping=tuple(extent + 3 for extent in new),
        box=tuple((index, index + extent) for index, extent in enumerate(new)),
        shape_after_cropping=new,
        spacing=coarse,
        transpose_forward=tuple(order),
        transpose_backward=tuple(plan.transpose_backward),
    )
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((labels.num_heads, *old), generator=generator) * 3
    inverse = InverseResampling(old, provenance, configuration, axis=axis, slab_bytes=slab_bytes)
    found = export_planes(portions(logits, axis, sizes), inverse, labels)

    whole = np.asarray(resample_image(logits.numpy(), new, (1.0, 1.0, 1.0), coarse, function, kwargs))
    expected = undo_labels(labels.decide(whole, logits=True), provenance)
    if labels.has_regions:
        narrow = (np.abs(whole) < NEAR).any(axis=0)
    else:
        first, second = np.sort(whole, axis=0)[::-1][:2]
        narrow = first - second < NEAR
    wide = ~undo_labels(narrow, provenance)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found[wide], expected[wide])
