"""Fit the temperature that calibrates probabilities on held-out cases (Guo et al., ICML 2017).

Each case is evaluated once, at all temperatures of a grid, and only sums are kept of it; the best temperature for all
cases, or for all but one, follows from them. Legend: H heads, N voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.special import expit

from segwright.data.labels import Labels
from segwright.inference.reliability.calibration import Calibration

TEMPERATURES: Final = tuple(2 ** (step / 6) for step in range(-12, 19))
"""From 1/4 to 8 in steps of 12 %; 1 is one of them."""
NUM_BINS: Final = 15
"""Confidence bins of equal width from 0 to 1 (Guo et al., section 4.1)."""

_UNCHANGED: Final = TEMPERATURES.index(1.0)

Floats = npt.NDArray[np.floating[Any]]


class CalibrationStats(BaseModel):
    """Calibration statistics of one case, at each of `TEMPERATURES`.

    Attributes:
        nll: mean negative log likelihood of the true labels, nats.
        gaps: by confidence bin, (share of voxels that are right - mean confidence), as a share of all voxels.
    """

    model_config = ConfigDict(frozen=True)

    nll: tuple[float, ...]
    gaps: tuple[tuple[float, ...], ...]


class CalibrationStatsCollector:
    """Accumulates the calibration statistics of one case.

    Args:
        labels: of the model; with regions every head is a separate binary prediction.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._count = 0
        self._nll = np.zeros(len(TEMPERATURES))
        self._gaps = np.zeros((len(TEMPERATURES), NUM_BINS))

    def add(self, logits: Floats, truth: npt.NDArray[Any]) -> None:
        """Add voxels: logits (H, N) or log probabilities, and true labels (N), which may be the ignore label."""
        known = truth != self._labels.ignore_label
        logits, heads = logits[:, known], self._labels.encode(truth[known])
        self._count += logits.shape[1]
        score = _score_regions if self._labels.has_regions else _score_labels
        for index, temperature in enumerate(TEMPERATURES):
            nll, confidence, is_right = score(logits / np.float32(temperature), heads)
            bins = np.minimum((confidence * NUM_BINS).astype(np.intp), NUM_BINS - 1)
            gaps = np.bincount(bins.ravel(), (is_right - confidence).ravel(), NUM_BINS)
            predictions = confidence.size / max(logits.shape[1], 1)
            self._nll[index] += nll / max(predictions, 1)
            self._gaps[index] += gaps / max(predictions, 1)

    def stats(self) -> CalibrationStats | None:
        """Return the means over the voxels; None without any."""
        if not self._count:
            return None
        nll, gaps = self._nll / self._count, self._gaps / self._count
        return CalibrationStats(
            nll=tuple(float(f"{value:.5g}") for value in nll),
            gaps=tuple(tuple(float(f"{value:.4g}") for value in row) for row in gaps),
        )


def fit(cases: Sequence[CalibrationStats]) -> Calibration | None:
    """Fit one temperature to held-out cases with equal weights; return None without cases.

    The error afterwards is that of each case with the temperature of the others. The temperature is 1 with a single
    case, and if the fitted one does not lower that error.
    """
    if not cases:
        return None
    nll = np.array([case.nll for case in cases])  # (cases, T)
    gaps = np.array([case.gaps for case in cases])  # (cases, T, bins)
    total = nll.sum(axis=0)
    chosen = [_best(total - own) if len(cases) > 1 else _UNCHANGED for own in nll]
    after = gaps[np.arange(len(cases)), chosen]
    error_before, error_after = _calibration_error(gaps[:, _UNCHANGED]), _calibration_error(after)
    helps = error_after < error_before
    return Calibration(
        temperature=TEMPERATURES[_best(total)] if helps else 1.0,
        ece_before=error_before,
        ece_after=error_after if helps else error_before,
        cases=len(cases),
    )


def _best(nll: npt.NDArray[np.float64]) -> int:
    return int(np.argmin(nll))


def _calibration_error(gaps: npt.NDArray[np.float64]) -> float:
    """Return the expected calibration error of (cases, bins): voxels of all cases share the bins."""
    return math.fsum(np.abs(gaps.mean(axis=0)))


def _score_labels(logits: Floats, heads: npt.NDArray[np.bool_]) -> tuple[float, Floats, Floats]:
    """Return summed nll, confidence of the chosen label (N) and whether it is the true one (N)."""
    below = logits - logits.max(axis=0)
    log_total = np.log(np.exp(below).sum(axis=0))
    nll = float(log_total.sum(dtype=np.float64) - below[heads].sum(dtype=np.float64))
    chosen = below.argmax(axis=0)[None]
    confidence: Floats = np.exp(-log_total)
    return nll, confidence, np.take_along_axis(heads, chosen, axis=0)[0].astype(np.float32)


def _score_regions(logits: Floats, heads: npt.NDArray[np.bool_]) -> tuple[float, Floats, Floats]:
    """Return summed nll, confidence of in or out of each region (H, N) and whether that is true (H, N)."""
    certainty = np.abs(logits)
    is_right = ((logits > 0) == heads).astype(np.float32)
    softplus = np.log1p(np.exp(-certainty))
    nll = float(softplus.sum(dtype=np.float64) + (certainty * (1 - is_right)).sum(dtype=np.float64))
    confidence: Floats = expit(certainty)
    return nll, confidence, is_right
