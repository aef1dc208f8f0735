"""What a model knows of its own limits: training range, Dice estimator, calibration; each may be missing."""

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
    """How far a prediction is to be trusted.

    Attributes:
        confidence: soft Dice that the model's own probabilities promise; None without foreground.
        expected_dice: what cases held out in training teach to expect; None where the model has no estimate.
        warnings: why the case should be looked at; the input's first.
    """

    confidence: float | None = None
    expected_dice: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityModel:
    """What a model was given to judge its predictions with."""

    training: TrainingRange | None = None
    dice_estimator: DiceEstimator | None = None
    calibration: Calibration | None = None

    def findings(self, volume: Volume) -> tuple[str, ...]:
        """Return in words what is odd about an image, and what of it is unlike the training cases."""
        notes = tuple(str(note) for note in volume.notes)
        return notes if self.training is None else (*notes, *self.training.findings(volume))

    def measures_disagreement(self, *mirror_axes: tuple[int, ...]) -> bool:
        """Whether the Dice estimate can be made: the members use the same mirrored views as in its fit."""
        return self.dice_estimator is not None and self.dice_estimator.mirror_axes == mirror_axes

    def assess(self, observation: Observation, findings: tuple[str, ...] = ()) -> Assessment:
        """Return how far a prediction is to be trusted; `findings` are those of the input."""
        expected = None
        if self.dice_estimator is not None and observation.disagreement is not None:
            expected = self.dice_estimator.expected_dice(observation)
            failing = self.dice_estimator.warning(expected)
            findings = (*findings, failing) if failing else findings
        return Assessment(confidence=observation.confidence, expected_dice=expected, warnings=findings)

    def temperature(self, *, calibrated: bool) -> float:
        """Return the temperature of probabilities that are written.

        Raises:
            ConfigError: calibrated ones are asked for, and the model has no calibration.
        """
        if not calibrated:
            return 1.0
        if self.calibration is None:
            raise ConfigError(f"calibrated: the model has no {CALIBRATION_JSON}; ask for probabilities as they are")
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
    """Log why a case should be looked at."""
    for warning in warnings:
        logger.warning("%s: %s", case, warning)


def training_range(model_folder: Path, plan: Plan, configuration: Configuration) -> TrainingRange:
    """Return what the training cases of a model folder look like, as far as fingerprint and plan say.

    Those of nnU-Net hold spacings and foreground intensities: enough to see another size of voxels or modality.
    """
    file = model_folder / FINGERPRINT_JSON
    fingerprint = None
    if file.is_file():
        try:
            fingerprint = Fingerprint.load(file)
        except SegwrightError as error:  # prediction needs no fingerprint
            logger.warning("%s; inputs unlike the training cases are flagged by the plan alone", error)
    if fingerprint is not None and fingerprint.segwright is not None:
        return fingerprint.segwright
    bounds = _spacings(fingerprint, plan) | _lowest_levels(plan, configuration)
    return TrainingRange(cases=1, margin=0.0, bounds=bounds)


def _spacings(fingerprint: Fingerprint | None, plan: Plan) -> dict[str, Bounds]:
    """Return the range of spacings: of the cases, or around the medians of the plan.

    Of medians the coarsest axis gets a factor of two more: the distance of slices differs most within a dataset.
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


def with_estimates(found: ReliabilityModel, folder: Path) -> ReliabilityModel:
    """Return it with the estimates in the folder of a selected model."""
    estimator, calibration = read_estimates(folder)
    return replace(found, dice_estimator=estimator, calibration=calibration)


def read_estimates(folder: Path) -> tuple[DiceEstimator | None, Calibration | None]:
    """Return what the folder of a selected model estimates, None for what it has not.

    Raises:
        SegwrightError: a document is damaged.
    """
    estimator, calibration = folder / QUALITY_JSON, folder / CALIBRATION_JSON
    return (
        DiceEstimator.load(estimator) if estimator.is_file() else None,
        Calibration.load(calibration) if calibration.is_file() else None,
    )
