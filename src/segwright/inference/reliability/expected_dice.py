"""Estimate the Dice of a prediction from its case statistics; `evaluation.dice_estimator` fits the estimator.

Legend: one number per foreground class where a tuple is said to have classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.inference.reliability.case_statistics import Observation

QUALITY_JSON: Final = "quality.json"
FEATURES: Final = ("overlap", "entropy", "disagreement", "volume")

MIN_CASES: Final = 3
"""Held-out cases from which on the estimate is reported; of fewer, it is the prior that speaks, and only warns."""

EXPECTED_SHARE = 0.9
"""A class is expected in every case if at least this share of the held-out cases has it."""


class UsualVolume(BaseModel):
    """Predicted volumes of a class over the held-out cases that have it.

    Attributes:
        share: of the held-out cases that have it.
        low: 5th percentile, mm^3; less where few cases have it.
        high: 95th percentile, mm^3; more where few cases have it.
    """

    model_config = ConfigDict(frozen=True)

    share: float
    low: float
    high: float


class DiceEstimator(BaseModel):
    """`quality.json`: estimates the Dice of a case, and says how good its estimates were on cases outside the fit.

    Attributes:
        weights: by feature, none below 0, so that a worse feature never raises the estimate.
        offset: added to the loss of Dice.
        usual: volumes by class, in the order of the observation's.
        mirror_axes: of each member, used for the observations; others would give another disagreement.
        cases: number of held-out cases of the fit.
        tau: Dice below which a case belongs to the worst fifth.
        auroc: of the expected Dice for "Dice below tau", out of sample; None with too few cases.
        error: mean absolute difference of expected and true Dice, out of sample; None with too few cases.
        warn_below: expected Dice below which a case is likely to have failed.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1] = 1
    weights: Mapping[str, float] = Field(default_factory=dict)
    offset: float
    usual: tuple[UsualVolume, ...]
    mirror_axes: tuple[tuple[int, ...], ...]
    cases: int
    tau: float
    auroc: float | None
    error: float | None
    warn_below: float

    @classmethod
    def load(cls, path: Path) -> DiceEstimator:
        """Read a `quality.json`.

        Raises:
            SegwrightError: missing, not JSON, or keys missing; named.
        """
        return parse_document(cls, path)

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        write_checked_json(path, self.model_dump(mode="json"))

    def expected_dice(self, observation: Observation) -> float:
        """Estimate the Dice, 0 to 1, mean over the classes."""
        values = features(observation, self.usual)
        loss = self.offset + sum(self.weights.get(name, 0.0) * value for name, value in values.items())
        return 1 - min(max(loss, 0.0), 1.0)

    @property
    def is_reported(self) -> bool:
        """Whether enough held-out cases were fitted to report estimates, not only warnings."""
        return self.cases >= MIN_CASES

    def warning(self, expected: float) -> str | None:
        """Return a warning if the expected Dice is unusually low."""
        if expected >= self.warn_below:
            return None
        return f"expected Dice {expected:.2f} is far below that of usual cases (from {self.warn_below:.2f} on)"


def features(observation: Observation, usual: tuple[UsualVolume, ...]) -> dict[str, float]:
    """Return features that indicate a failure, each from 0 (good) to 1 (bad), roughly in units of lost Dice.

    overlap: 1 - soft Dice, mean over the classes that are expected or predicted; one that is expected and missing is 1.
    entropy, disagreement: as of the observation, 0 where not measured.
    volume: how far volumes are outside the usual ones, mean over the expected classes: 1 - the ratio to the nearest.
    """
    lost, unusual = [], []
    for overlap, volume, typical in zip(observation.overlaps, observation.volumes, usual, strict=True):
        is_expected = typical.share >= EXPECTED_SHARE
        if is_expected or (overlap is not None and volume > 0):
            lost.append(1.0 if overlap is None else 1 - overlap)
        if is_expected:
            unusual.append(1 - _ratio(volume, typical))
    return {
        "overlap": _mean(lost),
        "entropy": observation.entropy,
        "disagreement": observation.disagreement or 0.0,
        "volume": _mean(unusual),
    }


def _ratio(volume: float, typical: UsualVolume) -> float:
    """Return 1 for a usual volume, else the ratio, below 1, of it and the nearest usual one."""
    if volume < typical.low:
        return volume / typical.low
    return typical.high / volume if volume > typical.high else 1.0


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
