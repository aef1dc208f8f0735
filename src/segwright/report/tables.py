"""Data of the report's tables: scores with confidence intervals, cases, decisions, environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segwright.data.labels import Labels
from segwright.evaluation.scores import CaseScores, Measures, Scores, class_key
from segwright.evaluation.statistics import interval, measure_table
from segwright.planning import rationale
from segwright.report.sources import ModelRecord

COUNTS = ("TP", "FP", "FN", "TN")
"""Voxel counts; in `summary.json`, but not shown in the report."""

SURFACE = ("HD", "ASSD", "NSD")
"""Prefixes of surface measures, which have their own table."""

_UNITS = {"n_pred": "predicted voxels", "n_ref": "reference voxels"}
_VOLUMES = "Volume_"
"""Prefix of volumes, which are not shown because the voxel counts are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """Scores of one class over all cases.

    Attributes:
        name: name of the class.
        values: mean of each measure, in the order of `measure_names`.
        intervals: 95 % bootstrap intervals of mean Dice and surface measures; None with few cases.
        num_cases: cases with the class in ground truth or prediction (for surfaces: in both).
    """

    name: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float] | None]
    num_cases: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean Dice."""
        return self.intervals.get("Dice")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """Scores of one case.

    Attributes:
        name: of the case.
        mean: mean Dice over its classes.
        dice: Dice by class name.
    """

    name: str
    mean: float
    dice: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """Scores of a set of cases.

    Attributes:
        title: what was scored.
        rows: overlap measures of each class.
        surfaces: surface measures of each class; empty if they were not measured.
        cases: scores of each case, the lowest first.
    """

    title: str
    rows: tuple[ClassRow, ...]
    surfaces: tuple[ClassRow, ...]
    cases: tuple[CaseRow, ...]

    @classmethod
    def of(cls, title: str, scores: Scores, labels: Labels, file_ending: str) -> ScoreTable:
        """Build the tables of a summary."""
        rows, surfaces = class_rows(scores, labels), surface_rows(scores, labels)
        cases = case_rows(scores, labels, file_ending)
        return cls(title=title, rows=tuple(rows), surfaces=tuple(surfaces), cases=tuple(cases))

    def to_json(self) -> dict[str, Any]:
        """Return the tables as a JSON object; NaN for a class in no case."""
        return asdict(self)


def measure_names(scores: Scores) -> tuple[str, ...]:
    """Return the names of the shown overlap measures, Dice first, including extra ones in the summary."""
    names = [name for name in _names(scores) if not name.startswith((*SURFACE, _VOLUMES))]
    own = [name for name in names if name not in COUNTS and name not in _UNITS]
    return ("Dice", *(name for name in own if name != "Dice"), *_UNITS)


def surface_names(scores: Scores) -> tuple[str, ...]:
    """Return the names of the surface measures in a summary; empty if not measured."""
    return tuple(name for name in _names(scores) if name.startswith(SURFACE))


def measure_title(name: str) -> str:
    """Return the column heading of a measure."""
    return _UNITS.get(name, name)


def measure_digits(name: str) -> int:
    """Return the number of decimals shown for a measure."""
    return 1 if name in _UNITS else 4


def class_rows(scores: Scores, labels: Labels) -> list[ClassRow]:
    """Return one row per class, and a last one for the mean over the classes that occur."""
    return _rows(scores, labels, measure_names(scores), ("Dice",))


def surface_rows(scores: Scores, labels: Labels) -> list[ClassRow]:
    """Return rows like `class_rows` for surface measures, each with its interval; empty if not measured."""
    names = surface_names(scores)
    return _rows(scores, labels, names, names) if names else []


def _rows(scores: Scores, labels: Labels, names: Sequence[str], resampled: Sequence[str]) -> list[ClassRow]:
    by_name = {name: measure_table(scores, name) for name in resampled}  # (cases, classes) each
    first = by_name[resampled[0]]
    rows = [
        ClassRow(
            name=labels.class_name(class_key(key)),
            values=_chosen(measures, names),
            intervals={name: interval(values[:, [column]]) for name, values in by_name.items()},
            num_cases=int(np.isfinite(first[:, column]).sum()),
        )
        for column, (key, measures) in enumerate(scores.mean.items())
    ]
    mean = ClassRow(
        name="mean over classes",
        values=_chosen(scores.foreground_mean_present or scores.foreground_mean, names),
        intervals={name: interval(values) for name, values in by_name.items()},
        num_cases=int(np.isfinite(first).any(axis=1).sum()),
    )
    return [*rows, mean] if len(rows) > 1 else rows


def case_rows(scores: Scores, labels: Labels, file_ending: str) -> list[CaseRow]:
    """Return the cases from worst to best; those without any class last."""
    return [
        CaseRow(
            name=case.case.removesuffix(file_ending),
            mean=case.mean_dice,
            dice={labels.class_name(class_key(key)): item.dice for key, item in case.metrics.items()},
        )
        for case in ranked(scores)
    ]


def ranked(scores: Scores) -> list[CaseScores]:
    """Sort cases by mean Dice, lowest first; those without any class last."""
    return sorted(scores.metric_per_case, key=lambda case: (math.isnan(case.mean_dice), case.mean_dice, case.case))


def decisions(model: ModelRecord) -> list[rationale.Decision]:
    """Return the planning decisions: those for the whole plan, then those for the trained configuration."""
    chosen = (rationale.EVERYWHERE, model.configuration_name)
    shown = [item for item in rationale.decisions(model.plan) if item.configuration in chosen]
    return sorted(shown, key=lambda item: chosen.index(item.configuration))


def environment(model: ModelRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return names and values of the environment in which the plan and each fold were made."""
    origin = model.plan.segwright
    plan = [
        ("plans", model.plan.plans_name),
        ("preset", str(origin.get("preset", ""))),
        ("planned by segwright", str(origin.get("version", ""))),
        ("fingerprint SHA-256", str(origin.get("fingerprint_hash", ""))),
    ]
    groups = [("plan", plan)]
    for fold in model.folds:
        training = fold.training
        config = training.get("config", {})
        versions = training.get("versions", {})
        entries = [
            ("trainer", str(training.get("trainer", ""))),
            ("started", str(training.get("started", ""))),
            ("device", f"{training.get('device', '')} {training.get('compute_dtype', '')}".strip()),
            ("threads", str(training.get("threads", ""))),
            ("seed", str(training.get("seed", ""))),
            ("length", _length(config)),
            ("batch size", str(config.get("batch_size") or "")),
            ("network (not from the plan)", str(config.get("network") or "")),
            ("loss (not the default)", str(config.get("loss") or "")),
            ("cases", ", ".join(f"{count} {part}" for part, count in training.get("cases", {}).items())),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("git commit", str(training.get("git_commit") or "")),
            ("plan SHA-256", str(training.get("plans_hash", ""))),
            *((f"{name} SHA-256", digest) for name, digest in fold.weights.items()),
        ]
        groups.append((f"fold {fold.name}", entries))
    return [(name, [(key, value) for key, value in entries if value]) for name, entries in groups]


def _length(config: Mapping[str, Any]) -> str:
    budget = config.get("budget_s")
    if budget and isinstance(budget, int | float):
        return f"{budget:g} s"
    return f"{config['num_epochs']} epochs" if "num_epochs" in config else ""


def _names(scores: Scores) -> list[str]:
    """Return the names of the numeric measures of a summary."""
    first = next(iter(scores.mean.values()), scores.foreground_mean)
    return [name for name, value in _values(first).items() if isinstance(value, int | float)]


def _values(measures: Measures) -> dict[str, Any]:
    return measures.model_dump(by_alias=True)


def _chosen(measures: Measures, names: Sequence[str]) -> dict[str, float]:
    values = _values(measures)
    return {name: float(value if isinstance(value := values.get(name), int | float) else math.nan) for name in names}
