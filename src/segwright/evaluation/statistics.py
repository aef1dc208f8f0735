"""Confidence intervals of mean metrics (bootstrap over cases), and paired tests of models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from logging import getLogger

import numpy as np
import numpy.typing as npt
from scipy import stats

from segwright.core.errors import DatasetError
from segwright.evaluation.scores import Measures, Scores

logger = getLogger(__name__)

MIN_CASES = 6
"""With fewer pairs Wilcoxon's test cannot reach p < 0.05."""

MIN_CASES_FOR_INTERVAL = 5
"""With fewer, no resampling shows how much other cases differ: that of two cases covers the mean half of the time."""

NUM_RESAMPLES = 2000
_CONFIDENCE = 95
_SEED = 0

Floats = npt.NDArray[np.float64]


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

    Summaries with different classes or references are compared with a warning.

    Raises:
        DatasetError: two models have too few cases in common.
    """
    dice = {name: {case.case: case.mean_dice for case in scores.metric_per_case} for name, scores in models.items()}
    tested = []
    for first, second in combinations(dice, 2):
        _warn_if_not_comparable(first, models[first], second, models[second])
        common = [
            (dice[first][case], dice[second][case])
            for case in dice[first].keys() & dice[second].keys()
            if not math.isnan(dice[first][case]) and not math.isnan(dice[second][case])
        ]
        if len(common) < MIN_CASES:
            raise DatasetError(
                f"{first} and {second} have {len(common)} scored cases in common; a comparison needs {MIN_CASES}"
            )
        pairs = np.array(common)
        differences = pairs[:, 1] - pairs[:, 0]
        p = 1.0 if not differences.any() else float(stats.wilcoxon(differences).pvalue)
        tested.append((first, second, len(pairs), float(differences.mean()), p))
    corrected = holm([p for *_, p in tested])
    return [
        Comparison(first=first, second=second, cases=cases, difference=difference, p=p, p_holm=adjusted)
        for (first, second, cases, difference, p), adjusted in zip(tested, corrected, strict=True)
    ]


def _warn_if_not_comparable(first: str, one: Scores, second: str, other: Scores) -> None:
    """Warn if two summaries have different classes, or references of different size."""
    if set(one.mean) != set(other.mean):
        logger.warning(
            "%s scores classes %s, %s scores %s: the means compared are not of the same classes",
            *(first, ", ".join(one.mean), second, ", ".join(other.mean)),
        )
        return
    metrics = {case.case: case.metrics for case in other.metric_per_case}
    common = [case for case in one.metric_per_case if case.case in metrics]
    unlike = [case.case for case in common if _sizes(case.metrics) != _sizes(metrics[case.case])]
    if unlike:
        logger.warning(
            "%d of %d common cases of %s and %s have references of different size, first %s: they were not scored "
            "against the same label maps",
            *(len(unlike), len(common), first, second, unlike[0]),
        )


def _sizes(metrics: Mapping[str, Measures]) -> dict[str, float]:
    return {key: measures.n_ref for key, measures in metrics.items()}


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for multiple comparisons by the method of Holm (1979).

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


def measure_table(scores: Scores, name: str) -> Floats:
    """Return one measure (cases, classes), by its name in `summary.json`: `Dice`, `HD95`, `NSD_1mm`.

    NaN where it was not computed, is undefined, or is infinite (a surface distance if one mask is empty), so that
    `interval` resamples exactly the values that the means in `summary.json` include.
    """
    rows = [[case.metrics[key].value(name) for key in scores.mean] for case in scores.metric_per_case]
    table = np.array(rows, dtype=float).reshape(len(rows), len(scores.mean))
    table[~np.isfinite(table)] = np.nan
    return table


def dice_table(scores: Scores) -> Floats:
    """Return Dice (cases, classes); NaN where a class is in neither map."""
    return measure_table(scores, "Dice")


def interval(values: Floats) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval, over cases, of the mean over classes of their mean.

    Its percentiles are those of Hesterberg (The American Statistician 2015, section 3.2) for small samples: the plain
    interval of n values is too narrow, by the factor sqrt((n - 1) / n) and because it ignores Student's t.

    Args:
        values: (cases, classes) of one measure, NaN where it is not defined, as of `measure_table`.

    Returns:
        None with fewer than `MIN_CASES_FOR_INTERVAL` cases that have a value.
    """
    count = int(np.isfinite(values).any(axis=1).sum())
    return None if count < MIN_CASES_FOR_INTERVAL else _percentiles(_resampled_means(values), count)


def margin_interval(first: Floats, second: Floats) -> tuple[float, float] | None:
    """Return the 95 % interval of how much higher the mean Dice of `first` is: both resampled by the same cases.

    Args:
        first: (cases, classes), as of `interval`.
        second: the same cases and classes.
    """
    assert first.shape == second.shape, "both have predicted the same cases"
    count = int((np.isfinite(first).any(axis=1) & np.isfinite(second).any(axis=1)).sum())
    if count < MIN_CASES_FOR_INTERVAL:
        return None
    return _percentiles(_resampled_means(first) - _resampled_means(second), count)


def few_cases_note(num_cases: int) -> str:
    """Return a sentence if scores of so few cases say little about others, else an empty text."""
    if num_cases >= MIN_CASES_FOR_INTERVAL:
        return ""
    scored = "1 scored case says" if num_cases == 1 else f"{num_cases} scored cases say"
    return f"{scored} little about other cases: no interval is given below {MIN_CASES_FOR_INTERVAL}"


def _resampled_means(table: Floats) -> Floats:
    """Return the mean over classes of their mean for each resample of the cases; NaN where it has no class."""
    drawn = np.random.default_rng(_SEED).integers(0, len(table), (NUM_RESAMPLES, len(table)))
    weights = np.stack([np.bincount(row, minlength=len(table)) for row in drawn]).astype(float)  # (resamples, cases)
    present = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        means = weights @ np.where(present, table, 0) / (weights @ present)  # (resamples, classes)
        kept = np.isfinite(means)
        overall: Floats = np.where(kept, means, 0).sum(axis=1) / kept.sum(axis=1)
    return overall


def _percentiles(values: Floats, count: int) -> tuple[float, float] | None:
    """Return the interval of resampled means of `count` cases."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    quantile = math.sqrt(count / (count - 1)) * stats.t.ppf((1 + _CONFIDENCE / 100) / 2, count - 1)
    tail = 100 * float(stats.norm.sf(quantile))
    low, high = np.percentile(finite, (tail, 100 - tail))
    return float(low), float(high)
