"""Resize label maps by weighted majority vote.

By definition, the 0/1 indicator of each label is resized and the largest wins (nnU-Net behaviour 6.4.2). The cost of
that grows with the number of labels. With linear interpolation a voxel depends on its 2 to 8 neighbours only;
where they agree, the label is known. So only the few voxels at label borders are computed, with exact float64 weights
(ties are frequent and decided by a rule), at a cost independent of the number of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segwright.preprocessing.operators import FloatArray, IndexArray, axis_operator, linear_samples

LabelArray = npt.NDArray[Any]
Rule = Literal["majority", "classic", "torch", "torch-memefficient"]

_SLAB_VOXELS = 1 << 22
_BORDER_VOXELS = 1 << 18
"""Border voxels handled at once: 8 corners x 8 bytes x this = 16 MiB of weights."""
_FLOAT32_ROUNDING = 1e-6
"""Margin around one half for the torch variant, which adds its weights in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisSamples:
    """Sampling of one axis of a label map: from two neighbours, or from one (`high` and `weight` None).

    Attributes:
        nearest: per output sample, the nearest input sample; decides ties.
        low: the input neighbour below.
        high: the input neighbour above.
        weight: of `high`; `low` has 1 - weight.
    """

    nearest: IndexArray
    low: IndexArray
    high: IndexArray | None = None
    weight: FloatArray | None = None


def nearest_sampling(indices: IndexArray) -> AxisSamples:
    """Return the sampling that copies slices by index."""
    return AxisSamples(nearest=indices, low=indices)


def linear_sampling(old: int, new: int, nearest: IndexArray) -> AxisSamples:
    """Return the sampling of a linear resize."""
    if old == new:
        return nearest_sampling(np.arange(old))
    samples = linear_samples(old, new)
    return AxisSamples(nearest=nearest, low=samples.low, high=samples.high, weight=samples.weight)


def resize_labels(labels: LabelArray, axes: Sequence[AxisSamples], rule: Rule = "majority") -> LabelArray:
    """Resize a label map (Z, Y, X) of any integer type with linear weights.

    Args:
        labels: the map.
        axes: the sampling of each axis.
        rule: `majority`: the label with the largest weight; ties go to the nearest voxel's label if it is tied, else to
            the smallest (batchgenerators 0.25.5). `classic`: the largest label with at least half of the weight,
            else 0 (up to 0.25.1). `torch`: as nnU-Net's torch variant (nnU-Net behaviour 6.4.3), whose scores have half
            precision. `torch-memefficient`: the largest label with more than half of the weight, else 0.
    """
    labels = np.ascontiguousarray(labels)
    result = np.empty([len(axis.nearest) for axis in axes], dtype=labels.dtype)
    planes = max(1, _SLAB_VOXELS // max(1, result[0].size))
    for start in range(0, len(result), planes):
        stop = min(start + planes, len(result))
        slab = [_cut_samples(axes[0], start, stop), *axes[1:]]
        lowest, highest = _neighbour_range(labels, slab)
        border = np.flatnonzero(lowest != highest)
        settled = lowest.reshape(-1)
        for first in range(0, len(border), _BORDER_VOXELS):
            chosen = border[first : first + _BORDER_VOXELS]
            settled[chosen] = _decide_border(labels, slab, np.unravel_index(chosen, lowest.shape), rule)
        result[start:stop] = lowest
    return result


def resize_labels_spline(labels: LabelArray, shape: Sequence[int], order: int, nearest: LabelArray) -> LabelArray:
    """Resize a label map by splines of any order: the largest resized indicator, ties as for `majority`."""
    best = np.full(tuple(shape), -np.inf)
    result = np.zeros(tuple(shape), dtype=labels.dtype)
    for label in np.unique(labels):
        score = _spline(labels == label, shape, order).clip(0, 1)
        won = (score > best) | ((score == best) & (nearest == label))
        result[won] = label
        best[won] = score[won]
    return result


def resize_axis_by_indicators(labels: LabelArray, axis: int, new: int, order: int) -> LabelArray:
    """Resize one axis: labels ascending, each written where its resized indicator exceeds one half.

    nnU-Net behaviour 6.4.2.
    """
    shape = [new if index == axis else extent for index, extent in enumerate(labels.shape)]
    result = np.zeros(shape, dtype=labels.dtype)
    for label in np.unique(labels):
        result[_spline(labels == label, shape, order) > 0.5] = label
    return result


def _spline(indicator: npt.NDArray[np.bool_], shape: Sequence[int], order: int) -> FloatArray:
    values = indicator.astype(np.float64)
    for axis, (old, new) in enumerate(zip(indicator.shape, shape, strict=True)):
        if old != new:
            values = np.moveaxis(np.tensordot(axis_operator(old, new, order), values, axes=(1, axis)), 0, axis)
    return values


def _cut_samples(axis: AxisSamples, start: int, stop: int) -> AxisSamples:
    return AxisSamples(
        nearest=axis.nearest[start:stop],
        low=axis.low[start:stop],
        high=None if axis.high is None else axis.high[start:stop],
        weight=None if axis.weight is None else axis.weight[start:stop],
    )


def _neighbour_range(labels: LabelArray, axes: Sequence[AxisSamples]) -> tuple[LabelArray, LabelArray]:
    """Return the smallest and the largest label among the neighbours of each output voxel."""
    lowest = highest = labels
    for index, axis in enumerate(axes):
        if axis.high is None:
            lowest, highest = lowest.take(axis.low, axis=index), highest.take(axis.low, axis=index)
        else:
            lowest, highest = (
                np.minimum(lowest.take(axis.low, axis=index), lowest.take(axis.high, axis=index)),
                np.maximum(highest.take(axis.low, axis=index), highest.take(axis.high, axis=index)),
            )
    return lowest, highest


def _decide_border(
    labels: LabelArray, axes: Sequence[AxisSamples], voxels: tuple[npt.NDArray[np.intp], ...], rule: Rule
) -> LabelArray:
    """Return the label of each border voxel from the weights of its neighbours."""
    flat = labels.reshape(-1)
    strides = [int(np.prod(labels.shape[index + 1 :])) for index in range(labels.ndim)]
    corners, weights = [], []
    for corner in product(*[(0,) if axis.high is None else (0, 1) for axis in axes]):
        offset = np.zeros(len(voxels[0]), dtype=np.intp)
        weight = np.ones(len(voxels[0]))
        for axis, upper, where, stride in zip(axes, corner, voxels, strides, strict=True):
            index = axis.high if upper and axis.high is not None else axis.low
            offset += index[where] * stride
            if axis.weight is not None:
                # One multiplication per axis in this order, as scipy does: exact ties depend on it.
                weight *= axis.weight[where] if upper else 1.0 - axis.weight[where]
        corners.append(flat[offset])
        weights.append(weight)
    candidates = np.stack(corners)  # (corner, voxel)
    scores = np.zeros(candidates.shape)
    for candidate, weight in zip(candidates, weights, strict=True):
        scores += weight * (candidates == candidate)
    if rule == "majority":
        offset = np.zeros(len(voxels[0]), dtype=np.intp)
        for axis, where, stride in zip(axes, voxels, strides, strict=True):
            offset += axis.nearest[where] * stride
        return _majority(candidates, scores, flat[offset])
    return _threshold(candidates, scores, rule)


def _majority(candidates: LabelArray, scores: FloatArray, nearest: LabelArray) -> LabelArray:
    tied = scores == scores.max(axis=0)
    smallest = np.where(tied, candidates, np.iinfo(candidates.dtype).max).min(axis=0)
    result: LabelArray = np.where((tied & (candidates == nearest)).any(axis=0), nearest, smallest)
    return result


def _threshold(candidates: LabelArray, scores: FloatArray, rule: Rule) -> LabelArray:
    lowest = np.iinfo(candidates.dtype).min
    if rule == "torch":
        # Scale, float16 and the threshold of 700 are those of nnU-Net (nnU-Net behaviour 6.4.3).
        half = (scores * 1000).astype(np.float16)
        sure = np.where(half > 700, candidates, lowest).max(axis=0)
        best = np.where(half == half.max(axis=0), candidates, np.iinfo(candidates.dtype).max).min(axis=0)
        result: LabelArray = np.where((half > 700).any(axis=0), sure, best)
    else:
        enough = scores >= 0.5 if rule == "classic" else scores > 0.5 + _FLOAT32_ROUNDING
        result = np.where(enough.any(axis=0), np.where(enough, candidates, lowest).max(axis=0), 0)
    return result.astype(candidates.dtype)
