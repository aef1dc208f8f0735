"""Result types of the API functions: trained folds, selections, runs, evaluations, the demo.

They are defined here so that `report` need not import `api`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segwright.data.labels import Labels
from segwright.evaluation.scores import Measures, Scores, class_key
from segwright.evaluation.selection import Summary
from segwright.inference.export.postprocessing import PostProcessing
from segwright.inference.reliability.calibration import Calibration
from segwright.inference.reliability.expected_dice import DiceEstimator


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFold:
    """One trained fold.

    Attributes:
        configuration: Name of the configuration.
        fold: Number, or `all`.
        model: Model folder.
        folder: Folder of the fold.
        dice: Mean Dice of the held-out cases by class name, and the mean over the classes as `mean`.
        dice_best: The same of `checkpoint_best`, if it was validated as well; None otherwise.
        shortcoming: Why the fold is not usable, and the remedy; empty if it is usable.
    """

    configuration: str
    fold: int | str
    model: Path
    folder: Path
    dice: dict[str, float]
    dice_best: dict[str, float] | None = None
    shortcoming: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fold as one JSON object."""
        return {
            "configuration": self.configuration,
            "fold": self.fold,
            "model": str(self.model),
            "folder": str(self.folder),
            "dice": self.dice,
            **({} if self.dice_best is None else {"dice_best": self.dice_best}),
            "shortcoming": self.shortcoming,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionReport:
    """A selected model.

    Attributes:
        model: Model folder.
        comparison: Scores of the candidates.
        postprocessing: Post-processing of its label maps, and the gain.
        dice_estimator: Estimator of the Dice of new cases, and its accuracy; None if no held-out case could be scored.
        calibration: Temperature scaling of its probabilities, and the gain; None in the same case.
        is_new: False if the model had been selected before.
        shortcoming: Why the model is not usable, and the remedy; empty if it is usable.
    """

    model: Path
    comparison: Summary
    postprocessing: PostProcessing
    dice_estimator: DiceEstimator | None = None
    calibration: Calibration | None = None
    is_new: bool
    shortcoming: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the selection as one JSON object."""
        return {
            "model": str(self.model),
            **self.comparison.model_dump(),
            "postprocessing": self.postprocessing.model_dump(),
            "quality": self.dice_estimator and self.dice_estimator.model_dump(),
            "calibration": self.calibration and self.calibration.model_dump(),
            "shortcoming": self.shortcoming,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A finished run.

    Attributes:
        folds: Trained folds.
        executed_stages: Stages that were executed; empty if everything was up to date.
        report_html: The HTML report, None if it could not be written.
        selection: The selected model.
        predictions: Folder of the label maps that the selected model predicted; None if there were no images.
        unapplied_changes: Requested changes not applied to finished folds, and the remedy; empty if there are none.
    """

    folds: tuple[TrainedFold, ...]
    executed_stages: tuple[str, ...]
    report_html: Path | None = None
    selection: SelectionReport | None = None
    predictions: Path | None = None
    unapplied_changes: str = ""

    @property
    def models(self) -> tuple[Path, ...]:
        """The model folders, one for each configuration."""
        return tuple(dict.fromkeys(fold.model for fold in self.folds))

    def to_json(self) -> dict[str, Any]:
        """Return the run as one JSON object."""
        return {
            "folds": [fold.to_json() for fold in self.folds],
            "done": list(self.executed_stages),
            "report": self.report_html and str(self.report_html),
            "selection": self.selection and self.selection.to_json(),
            "predictions": self.predictions and str(self.predictions),
            "not_done": self.unapplied_changes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of a folder of predictions.

    Attributes:
        scores: By case, by class and over all classes.
        file: The `summary.json` that holds them.
        labels: Names of the classes.
    """

    scores: Scores
    file: Path
    labels: Labels

    def named_means(self) -> list[tuple[str, Measures]]:
        """Return (name, mean measures) per class; the last row is `mean`, over the foreground classes."""
        rows = [(self.labels.class_name(class_key(key)), measures) for key, measures in self.scores.mean.items()]
        return [*rows, ("mean", self.scores.foreground_mean_present or self.scores.foreground_mean)]

    def to_json(self) -> dict[str, Any]:
        """Return the mean measures by name as one JSON object, without the cases."""
        means = {name: measures.model_dump(by_alias=True) for name, measures in self.named_means()}
        return {"file": str(self.file), "cases": len(self.scores.metric_per_case), "mean": means}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Result of the demo.

    Attributes:
        mean_dice: Mean Dice of the test cases over the classes.
        per_label: Mean Dice of the test cases by class name.
        seconds: Duration of the demo.
        model: Model folder.
        pictures: PNG files that show the test cases with references and predictions.
        report_html: The HTML report, None if it could not be written.
        shortcoming: Why the model is not usable, and the remedy; empty if it is usable.
    """

    mean_dice: float
    per_label: dict[str, float]
    seconds: float
    model: Path
    pictures: tuple[Path, ...]
    report_html: Path | None = None
    shortcoming: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as one JSON object."""
        return {
            "mean_dice": self.mean_dice,
            "per_label": self.per_label,
            "seconds": round(self.seconds, 1),
            "model": str(self.model),
            "pictures": [str(path) for path in self.pictures],
            "report": self.report_html and str(self.report_html),
            "shortcoming": self.shortcoming,
        }


def dice_by_name(scores: Scores, labels: Labels) -> dict[str, float]:
    """Return the mean Dice by class name, and as `mean` the one over the classes that occur."""
    by_name = {labels.class_name(class_key(key)): measures.dice for key, measures in scores.mean.items()}
    return {**by_name, "mean": scores.mean_dice}
