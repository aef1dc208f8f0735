"""Logits back on the grid of the case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segwright.core.errors import PlanError
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.labels import LabelMap, ProbabilityArray, export_planes
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.window.stitching import Planes
from segwright.preprocessing.pipeline import full_spacing
from segwright.preprocessing.resampling import resample_image
from tests.inverse_preprocessing import undo_labels, undo_probabilities

LABELS = Labels.from_dataset_json({"labels": {"background": 0, "one": 1, "two": 2}})
REGIONS = Labels.from_dataset_json(
    {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}, "regions_class_order": [1, 2, 3]}
)
PROVENANCE = Provenance(
    properties={"spacing": [1.0, 1.1, 1.2]},
    shape_before_cropping=(14, 15, 16),
    box=((1, 13), (2, 12), (0, 11)),
    shape_after_cropping=(12, 10, 11),
    spacing=(1.2, 1.0, 1.1),
    transpose_forward=(2, 0, 1),
    transpose_backward=(1, 2, 0),
)


def decided(given: torch.Tensor, inverse: InverseResampling, labels: Labels) -> LabelMap:
    return export_planes([Planes(start=0, stop=given.shape[1], logits=given)], inverse, labels)


def logits(*shape: int) -> torch.Tensor:
    return torch.randn((3, *shape), generator=torch.Generator().manual_seed(0)) * 3


def resampled(given: torch.Tensor, configuration: Configuration) -> np.ndarray:
    """Return the logits on the cropped grid, all at once."""
    result = resample_image(
        given.numpy(),
        PROVENANCE.shape_after_cropping,
        full_spacing(configuration, PROVENANCE.spacing),
        PROVENANCE.spacing,
        configuration.resampling_fn_probabilities,
        configuration.resampling_fn_probabilities_kwargs,
    )
    return np.asarray(result)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize(("name", "shape"), [("3d_fullres", (10, 7, 8)), ("2d", (12, 7, 8))])
@pytest.mark.parametrize("slab_bytes", [1, 5000, 2**30])
def test_slabs_give_what_all_at_once_gives(
    plan: Plan, labels: Labels, name: str, shape: tuple[int, ...], slab_bytes: int
) -> None:
    configuration = plan.configuration(name)
    given = logits(*shape)
    expected = undo_labels(labels.decide(resampled(given, configuration), logits=True), PROVENANCE)
    inverse = InverseResampling(shape, PROVENANCE, configuration, slab_bytes=slab_bytes)
    found = decided(given, inverse, labels)
    assert found.shape == (15, 16, 14)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_probabilities_follow_the_rules_outside_the_crop(plan: Plan, labels: Labels) -> None:
    configuration = plan.configuration("3d_fullres")
    given = logits(10, 7, 8)
    inverse = InverseResampling((10, 7, 8), PROVENANCE, configuration)
    writer = ProbabilityArray(inverse, labels)
    export_planes([Planes(start=0, stop=10, logits=given)], inverse, labels, writer=writer)
    found = writer.array
    expected = undo_probabilities(
        labels.probabilities(resampled(given, configuration)), PROVENANCE, has_regions=labels.has_regions
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert (found[:, 0, 0, 0] == ([0, 0, 0] if labels.has_regions else [1, 0, 0])).all()


def test_more_than_255_labels_are_kept(plan: Plan) -> None:
    names = {"background": 0, **{f"label {value}": value for value in range(1, 300)}}
    labels = Labels.from_dataset_json({"labels": names})
    given = torch.zeros((300, 12, 10, 11))
    given[299] = 1
    flat = replace(PROVENANCE, spacing=(1.5, 1.5, 1.5))
    found = decided(given, InverseResampling((12, 10, 11), flat, plan.configuration("3d_fullres")), labels)
    assert found.dtype == np.uint16
    assert found.max() == 299


def test_a_plan_that_cannot_resample_back_is_named(plan: Plan) -> None:
    configuration = plan.configuration("3d_fullres").model_copy(
        update={"resampling_fn_probabilities": "no_resampling_hack", "resampling_fn_probabilities_kwargs": {}}
    )
    with pytest.raises(PlanError, match="resampling_fn_probabilities"):
        InverseResampling((10, 7, 8), PROVENANCE, configuration)
