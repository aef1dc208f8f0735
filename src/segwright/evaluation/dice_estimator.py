"""Fit the estimator of the Dice of a prediction on held-out cases, from the statistics of their prediction.

Held-out cases are few, and hardly any of them fails, but failures are what the estimator is for. So weights, none below
0, are fitted by ridge regression towards a prior: one unit of lost soft Dice costs one unit of Dice, and entropy,
disagreement and unusual volumes cost more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear
from scipy.stats import rankdata

from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.expected_dice import FEATURES, MIN_CASES, DiceEstimator, UsualVolume, features

PRIOR: Final[Mapping[str, float]] = {"overlap": 1.0, "entropy": 0.5, "disagreement": 0.5, "volume": 0.25}
_PRIOR_CASES = 0.05
"""Weight of the prior: the sum of squares of a feature over the cases at which both count the same."""
_OFFSET_PRIOR = 1.0
"""Weight of the offset's prior, in cases."""
_VOLUME_PERCENTILES = (5, 95)
_WORST = 0.2
"""Share of the cases that count as failed: the worst fifth, whose Dice is at most tau."""
_MIN_CASES_FOR_AUROC = 10
"""So that at least two cases count as failed."""
_WARN_SIGMAS = 4.0
"""Distance of the warning threshold below the median expected Dice, in standard deviations."""
_WARN_MIN_DICE = 0.1
"""Smallest such distance, in Dice."""
_FEW_CASES = 2
"""With this many cases that distance is doubled, and so is the range of usual volumes: their spread is uncertain."""
_TO_SIGMA = 1.4826
"""From the median absolute deviation to a standard deviation (of the normal distribution)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A case that was not trained on.

    Attributes:
        observation: statistics of its prediction.
        dice: mean over the classes that are in it or were predicted.
        present: for each foreground class whether the true labels have it.
    """

    observation: Observation
    dice: float
    present: tuple[bool, ...]


def fit(cases: Sequence[HeldOut], mirror_axes: tuple[tuple[int, ...], ...]) -> DiceEstimator | None:
    """Fit the estimator to held-out cases; return None without cases.

    Error and AUROC are leave-one-out: each case is estimated from the others.

    Args:
        cases: with a Dice that is a number.
        mirror_axes: of each member, see `DiceEstimator`.
    """
    if not cases:
        return None
    dice = np.array([case.dice for case in cases])
    usual = _usual_volumes(cases)
    offset, weights = _weights(cases, usual)
    estimator = DiceEstimator(
        weights=weights,
        offset=offset,
        usual=usual,
        mirror_axes=mirror_axes,
        cases=len(cases),
        tau=float(np.quantile(dice, _WORST, method="inverted_cdf")),
        auroc=None,
        error=None,
        warn_below=0.0,
    )
    expected = np.array([_leave_one_out(cases, index, estimator) for index in range(len(cases))])
    return estimator.model_copy(
        update={
            "auroc": auroc(expected, dice <= estimator.tau) if len(cases) >= _MIN_CASES_FOR_AUROC else None,
            "error": float(np.abs(expected - dice).mean()) if len(cases) >= MIN_CASES else None,
            "warn_below": _warn_below(expected),
        }
    )


def auroc(expected: Floats, failed: npt.NDArray[np.bool_]) -> float | None:
    """Return the AUROC of a low expected Dice for failed cases; None unless some cases failed and some did not."""
    bad, good = int(failed.sum()), int((~failed).sum())
    if not bad or not good:
        return None
    ranks = rankdata(expected)
    return float((ranks[~failed].sum() - good * (good + 1) / 2) / (bad * good))


def _leave_one_out(cases: Sequence[HeldOut], index: int, of_all: DiceEstimator) -> float:
    """Return the expected Dice of a case, from an estimator fitted to all others; a single case uses its own."""
    others = [*cases[:index], *cases[index + 1 :]]
    estimator = of_all
    if others:
        usual = _usual_volumes(others)
        offset, weights = _weights(others, usual)
        estimator = of_all.model_copy(update={"offset": offset, "weights": weights, "usual": usual})
    return estimator.expected_dice(cases[index].observation)


def _usual_volumes(cases: Sequence[HeldOut]) -> tuple[UsualVolume, ...]:
    volumes = np.array([case.observation.volumes for case in cases])
    present = np.array([case.present for case in cases])
    usual = []
    for column, is_present in zip(volumes.T, present.T, strict=True):
        known = column[is_present & (column > 0)]
        low, high = np.percentile(known, _VOLUME_PERCENTILES) if len(known) else (0.0, 0.0)
        slack = 1 + _FEW_CASES / max(len(known), 1)
        usual.append(UsualVolume(share=float(is_present.mean()), low=float(low) / slack, high=float(high) * slack))
    return tuple(usual)


def _weights(cases: Sequence[HeldOut], usual: tuple[UsualVolume, ...]) -> tuple[float, dict[str, float]]:
    """Return offset and weights: least squares with one extra row for each part of the prior."""
    rows = [features(case.observation, usual) for case in cases]
    table = np.array([[1.0, *(row[name] for name in FEATURES)] for row in rows])
    lost = np.array([1 - case.dice for case in cases])
    pull = np.sqrt([_OFFSET_PRIOR, *[_PRIOR_CASES] * len(FEATURES)])
    prior = np.array([0.0, *(PRIOR[name] for name in FEATURES)])
    lower = np.array([-1.0, *[0.0] * len(FEATURES)])
    solution = lsq_linear(
        np.vstack([table, np.diag(pull)]), np.concatenate([lost, pull * prior]), bounds=(lower, np.inf)
    )
    offset, *weights = solution.x.tolist()
    return offset, dict(zip(FEATURES, weights, strict=True))


def _warn_below(expected: Floats) -> float:
    """Return the expected Dice below which a case is likely to have failed."""
    middle = float(np.median(expected))
    spread = _TO_SIGMA * float(np.median(np.abs(expected - middle)))
    return max(0.0, middle - max(_WARN_MIN_DICE, _WARN_SIGMAS * spread) * (1 + _FEW_CASES / len(expected)))
