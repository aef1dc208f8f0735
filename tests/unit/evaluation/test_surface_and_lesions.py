"""Surface distances and lesion counts against plain loops over all pairs, on small random masks."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from segwright.evaluation.lesions import compare_lesions
from segwright.evaluation.surface import surface_distances

TOLERANCES = (0.5, 1.0, 2.5)


def random_masks(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(2, 4))
    shape = tuple(int(size) for size in rng.integers(1, 9, size=dims))
    first, second = (
        ndimage.gaussian_filter(rng.normal(size=shape), 0.8) > rng.choice([0.0, 0.3, 9.0], p=[0.45, 0.45, 0.1])
        for _ in range(2)
    )
    if seed % 7 == 0:
        second = first.copy()
    return first, second, tuple(float(value) for value in rng.uniform(0.3, 4.0, size=dims))


def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    found = []
    for voxel in zip(*np.nonzero(mask), strict=True):
        for axis, step in product(range(mask.ndim), (-1, 1)):
            neighbour = list(voxel)
            neighbour[axis] += step
            inside = 0 <= neighbour[axis] < mask.shape[axis]
            if not inside or not mask[tuple(neighbour)]:
                found.append(voxel)
                break
    return found


def all_distances(mask: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    ours, theirs = (np.array(surface(each)) * spacing for each in (mask, other))
    return [min(math.dist(one, two) for two in theirs) for one in ours]


@pytest.mark.parametrize("seed", range(200))
def test_distances_are_those_of_all_pairs(seed: int) -> None:
    first, second, spacing = random_masks(seed)
    found = surface_distances(first, second, spacing)
    measures = [found.hausdorff, found.hausdorff_95, found.mean, *(found.surface_dice(each) for each in TOLERANCES)]
    if not first.any() and not second.any():
        assert all(math.isnan(value) for value in measures)
    elif not first.any() or not second.any():
        assert measures == [math.inf] * 3 + [0.0] * 3
    else:
        there, back = all_distances(first, second, spacing), all_distances(second, first, spacing)
        both = np.array(there + back)
        expected = [
            max(both),
            max(np.percentile(there, 95), np.percentile(back, 95)),
            both.mean(),
            *((both <= tolerance).mean() for tolerance in TOLERANCES),
        ]
        np.testing.assert_allclose(measures, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(200))
def test_a_surface_as_far_away_as_the_tolerance_is_within(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = tuple(float(value) for value in rng.choice([0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 5.0], 3))
    first, second = (rng.random((4, 6, 7)) < rng.choice([0.05, 0.3]) for _ in range(2))
    first[0, 0, 0] = second[-1, -1, -1] = True
    points = [np.array(surface(mask)) for mask in (first, second)]
    apart = np.sqrt((((points[0][:, None] - points[1][None]) * spacing) ** 2).sum(axis=-1))
    there, back = apart.min(axis=1), apart.min(axis=0)
    tolerances = (1.0, 2.0, *rng.choice(np.concatenate([there, back]), 5))
    found = surface_distances(first, second, spacing, tolerances=tolerances)
    for tolerance in tolerances:
        expected = ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(there) + len(back))
        assert found.surface_dice(tolerance) == expected


def components(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    left = {tuple(int(value) for value in voxel) for voxel in zip(*np.nonzero(mask), strict=True)}
    found = []
    while left:
        todo, component = [left.pop()], set()
        while todo:
            voxel = todo.pop()
            component.add(voxel)
            for step in product((-1, 0, 1), repeat=mask.ndim):
                neighbour = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    todo.append(neighbour)
        found.append(component)
    return found


@pytest.mark.parametrize("seed", range(200))
def test_lesions_are_those_of_a_flood_fill(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(3, 9, size=int(rng.integers(2, 4))))
    first = rng.random(shape) < rng.choice([0.0, 0.05, 0.2])
    second = first & (rng.random(shape) < 0.9) | (rng.random(shape) < rng.choice([0.0, 0.05]))
    reference, predicted = components(first), components(second)
    found = compare_lesions(first, second)
    overlap = [[len(one & two) / len(one | two) for two in predicted] for one in reference]
    recall = sum(any(row) for row in overlap)
    true = sum(any(row[index] for row in overlap) for index in range(len(predicted)))
    matched = [iou for row in overlap for iou in row if iou > 0.5]
    counts = (found.num_reference, found.num_predicted, found.num_detected, found.num_correct)
    assert counts == (len(reference), len(predicted), recall, true)
    assert sorted(found.ious) == pytest.approx(sorted(matched))
    if not reference and not predicted:
        assert math.isnan(found.f1)
        assert math.isnan(found.panoptic_quality)
    elif not reference or not predicted:
        assert (found.f1, found.panoptic_quality) == (0.0, 0.0)
    else:
        share, precision = recall / len(reference), true / len(predicted)
        expected = 2 * share * precision / (share + precision) if recall else 0.0
        assert found.f1 == pytest.approx(expected)
        assert found.panoptic_quality == pytest.approx(sum(matched) / (len(reference) / 2 + len(predicted) / 2))


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Any:
    grid = np.ogrid[tuple(slice(0, size) for size in shape)]
    return sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True)) < radius**2


def test_balls_are_as_far_apart_as_their_centres() -> None:
    first, second = ball((40, 40, 40), (20, 20, 15), 9), ball((40, 40, 40), (20, 20, 18), 9)
    assert surface_distances(first, second, (1.0, 1.0, 2.0)).hausdorff == pytest.approx(6.0, abs=0.1)
