"""Judge how reliable a prediction is: range of the training cases, expected Dice, calibration; each may be missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path

import numpy as np

from segwright.core.errors import ConfigError, SegwrightError
from segwright.data.fingerprint import Fingerprint
from segwright.data.images.image_io import Volume
from segwright.data.outliers import CT_LEVEL, Bounds, TrainingRange
from segwright.data.plan import Configuration, Plan
from segwright.inference.reliability.calibration import CALIBRATION_JSON, Calibration
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.expected_dice import QUALITY_JSON, DiceEstimator
from segwright.workspace import FINGERPRINT_JSON

logger = getLogger(__name__)

_CT = "CTNormalization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """How reliable a prediction is.

    Attributes:
        confidence: soft Dice expected from the model's own probabilities; None without foreground.
        expected_dice: as estimated on held-out cases; None if the model has no estimator, or one from too few cases.
        warnings: reasons to check the case, those about the input first.
    """

    confidence: float | None = None
    expected_dice: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityModel:
    """What a model has to judge its predictions with."""

    training: TrainingRange | None = None
    dice_estimator: DiceEstimator | None = None
    calibration: Calibration | None = None

    def findings(self, volume: Volume) -> tuple[str, ...]:
        """Return what is unusual about an image, also compared with the training cases, as sentences."""
        notes = tuple(str(note) for note in volume.notes)
        return notes if self.training is None else (*notes, *self.training.findings(volume))

    def measures_disagreement(self, *mirror_axes: tuple[int, ...]) -> bool:
        """Whether the Dice estimator applies: the members use the mirrored views with which it was fitted."""
        return self.dice_estimator is not None and self.dice_estimator.mirror_axes == mirror_axes

    def assess(self, observation: Observation, findings: tuple[str, ...] = ()) -> Assessment:
        """Assess a prediction; `findings` are those of the input."""
        expected = None
        if self.dice_estimator is not None and observation.disagreement is not None:
            expected = self.dice_estimator.expected_dice(observation)
            failing = self.dice_estimator.warning(expected)
            findings = (*findings, failing) if failing else findings
            expected = expected if self.dice_estimator.is_reported else None
        return Assessment(confidence=observation.confidence, expected_dice=expected, warnings=findings)

    def temperature(self, *, calibrated: bool) -> float:
        """Return the temperature of probabilities that are written.

        Raises:
            ConfigError: calibrated probabilities are requested, and the model has no calibration.
        """
        if not calibrated:
            return 1.0
        if self.calibration is None:
            raise ConfigError(
                f"calibrated: the model has no {CALIBRATION_JSON}; write probabilities without calibration"
            )
        if not self.calibration.helps:
            logger.warning(
                "calibrated: no temperature lowers the calibration error of this model on its held-out cases (%.4f); "
                "probabilities are written as they are",
                self.calibration.ece_before,
            )
            return 1.0
        return self.calibration.temperature


NO_RELIABILITY = ReliabilityModel()


def log_warnings(case: str, warnings: Sequence[str]) -> None:
    """Log the warnings about a case."""
    for warning in warnings:
        logger.warning("%s: %s", case, warning)


def training_range(model_folder: Path, plan: Plan, configuration: Configuration) -> TrainingRange:
    """Return the range of the training cases of a model folder, from its fingerprint and plan.

    nnU-Net's fingerprint has spacings and foreground intensities only: enough to notice another voxel size or modality.
    """
    file = model_folder / FINGERPRINT_JSON
    fingerprint = None
    if file.is_file():
        try:
            fingerprint = Fingerprint.load(file)
        except SegwrightError as error:  # prediction needs no fingerprint
            logger.warning("%s; out-of-distribution inputs are flagged by the plan alone", error)
    if fingerprint is not None and fingerprint.segwright is not None:
        return fingerprint.segwright
    bounds = _spacings(fingerprint, plan) | _lowest_levels(plan, configuration)
    return TrainingRange(cases=1, margin=0.0, bounds=bounds)


def _spacings(fingerprint: Fingerprint | None, plan: Plan) -> dict[str, Bounds]:
    """Return the range of log spacings: that of the cases, or else around the medians of the plan.

    The coarsest axis may then differ by a factor of two, since the slice distance varies most within a dataset.
    """
    if fingerprint is not None and fingerprint.spacings:
        columns = [[math.log(max(size, 1e-12)) for size in sizes] for sizes in zip(*fingerprint.spacings, strict=False)]
        return {f"spacing {axis}": Bounds(low=min(sizes), high=max(sizes)) for axis, sizes in enumerate(columns)}
    median = plan.original_median_spacing_after_transp
    if len(median) != len(plan.transpose_backward):
        return {}
    spacing = [math.log(max(median[axis], 1e-12)) for axis in plan.transpose_backward]
    more = [math.log(2) * (axis == int(np.argmax(spacing))) for axis in range(len(spacing))]
    return {
        f"spacing {axis}": Bounds(low=size - wider, high=size + wider)
        for axis, (size, wider) in enumerate(zip(spacing, more, strict=True))
    }


def _lowest_levels(plan: Plan, configuration: Configuration) -> dict[str, Bounds]:
    """Return where the lowest intensities of each channel lie: far below 0 for CT, else only if none was negative."""
    levels = {}
    for channel, scheme in enumerate(configuration.normalization_schemes):
        smallest = plan.foreground_intensity_properties_per_channel.get(str(channel), {}).get("min", -1.0)
        if scheme == _CT or smallest >= 0:
            level = CT_LEVEL if scheme == _CT else math.log1p(smallest)
            levels[f"level {channel} 1"] = Bounds(low=level, high=level)
    return levels


def with_estimates(reliability: ReliabilityModel, folder: Path) -> ReliabilityModel:
    """Add the estimates in the folder of a selected model."""
    estimator, calibration = read_estimates(folder)
    return replace(reliability, dice_estimator=estimator, calibration=calibration)


def read_estimates(folder: Path) -> tuple[DiceEstimator | None, Calibration | None]:
    """Read Dice estimator and calibration from the folder of a selected model; None for a missing one.

    Raises:
        SegwrightError: a document is damaged.
    """
    estimator, calibration = folder / QUALITY_JSON, folder / CALIBRATION_JSON
    return (
        DiceEstimator.load(estimator) if estimator.is_file() else None,
        Calibration.load(calibration) if calibration.is_file() else None,
    )
