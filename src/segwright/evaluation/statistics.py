"""Is one model better than another? Paired tests over the cases that both have predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from segwright.core.errors import DatasetError
from segwright.evaluation.scores import Scores

FEWEST_CASES = 6
"""With fewer pairs Wilcoxon's test cannot reach p < 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on their common cases.

    Attributes:
        first: name of one.
        second: name of the other.
        cases: number of pairs.
        difference: mean of second minus first.
        p: of Wilcoxon's signed-rank test, two-sided; 1 where all pairs are equal.
        p_holm: corrected for all comparisons made (Holm 1979).
    """

    first: str
    second: str
    cases: int
    difference: float
    p: float
    p_holm: float


def compare(models: Mapping[str, Scores]) -> list[Comparison]:
    """Compare every pair of models by the mean foreground Dice of each case.

    Raises:
        DatasetError: two models have too few cases in common.
    """
    dice = {name: {case.case: case.mean_dice for case in scores.metric_per_case} for name, scores in models.items()}
    found = []
    for first, second in combinations(dice, 2):
        common = [
            (dice[first][case], dice[second][case])
            for case in dice[first].keys() & dice[second].keys()
            if not math.isnan(dice[first][case]) and not math.isnan(dice[second][case])
        ]
        if len(common) < FEWEST_CASES:
            raise DatasetError(
                f"{first} and {second} have {len(common)} scored cases in common; a comparison needs {FEWEST_CASES}"
            )
        pairs = np.array(common)
        differences = pairs[:, 1] - pairs[:, 0]
        p = 1.0 if not differences.any() else float(stats.wilcoxon(differences).pvalue)
        found.append((first, second, len(pairs), float(differences.mean()), p))
    corrected = holm([item[4] for item in found])
    return [
        Comparison(first=first, second=second, cases=cases, difference=difference, p=p, p_holm=adjusted)
        for (first, second, cases, difference, p), adjusted in zip(found, corrected, strict=True)
    ]


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, each at least as large as the smaller ones.

    >>> [round(value, 3) for value in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(values)
    result = [1.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        result[index] = largest
    return result
