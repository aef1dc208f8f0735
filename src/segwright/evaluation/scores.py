"""Score predictions, as nnU-Net's `summary.json` has it: by case and class, by class, over the foreground."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import Problem, ProblemReport, SegwrightError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.core.parallel import map_threads
from segwright.data.images.formats import Header
from segwright.data.images.geometry import find_reorientation, grid_problem
from segwright.data.images.image_io import Volume, is_small, read_header, read_label
from segwright.data.labels import ClassKey, Labels
from segwright.evaluation.masks import ExtraMetrics as ExtraMetrics
from segwright.evaluation.masks import class_mask, has_volume, measure_masks
from segwright.evaluation.matching import NONE_LISTED
from segwright.evaluation.matching import pair_files as pair_files
from segwright.evaluation.metrics import Confusion, Overlap, confusion

logger = getLogger(__name__)

_INDENT = 4
_SHOWN_VALUES = 8
Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Function from label map (*S) to label map, such as post-processing."""


class Measures(BaseModel):
    """Metrics of one class: counts in one case, means over several. Metrics that nnU-Net lacks are extra fields.

    Means of extra metrics leave out NaN and infinite values: a surface distance is infinite if one mask is empty.

    Attributes:
        dice: Dice; NaN if the class is in neither map.
        fn: voxels of the class in the reference alone.
        fp: voxels of the class in the prediction alone.
        iou: intersection over union; NaN as for `dice`.
        tn: voxels of the class in neither.
        tp: voxels of the class in both.
        n_pred: voxels of the class in the prediction.
        n_ref: voxels of the class in the reference.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    dice: float = Field(alias="Dice")
    fn: int | float = Field(alias="FN")
    fp: int | float = Field(alias="FP")
    iou: float = Field(alias="IoU")
    tn: int | float = Field(alias="TN")
    tp: int | float = Field(alias="TP")
    n_pred: int | float
    n_ref: int | float

    @classmethod
    def of(cls, overlap: Overlap, **extra: float) -> Measures:
        """Return the measures of one class in one case."""
        return cls(
            dice=overlap.dice,
            iou=overlap.iou,
            tp=overlap.tp,
            fp=overlap.fp,
            fn=overlap.fn,
            tn=overlap.tn,
            n_pred=overlap.tp + overlap.fp,
            n_ref=overlap.tp + overlap.fn,
            **{"Precision": overlap.precision, "Recall": overlap.recall, **extra},
        )

    @classmethod
    def mean_of(cls, several: Sequence[Measures], *, skip_nan: bool) -> Measures:
        """Return the mean of every metric; `skip_nan` leaves out NaN values, otherwise the mean is NaN."""
        return cls(
            **{
                name: _mean([getattr(measures, name) for measures in several], skip_nan=skip_nan)
                for name in cls.model_fields
            },
            **{
                name: _mean([each.extra[name] for each in several if name in each.extra], skip_nan=True)
                for name in dict.fromkeys(name for each in several for name in each.extra)
            },
        )

    @property
    def extra(self) -> dict[str, float]:
        """The metrics that nnU-Net lacks, by name."""
        return dict(self.model_extra or {})

    def value(self, name: str) -> float:
        """Return a metric by its name in `summary.json`; NaN if it was not computed."""
        if name in (self.model_extra or {}):
            return self.extra[name]
        for field, info in type(self).model_fields.items():
            if name == (info.alias or field):
                return float(getattr(self, field))
        return math.nan


OVERLAP_ALONE: Final = ExtraMetrics()


class CaseScores(BaseModel):
    """Measures of one case.

    Attributes:
        metrics: by class key, `"1"` or `"(1, 2)"`.
        prediction_file: path of the predicted label map.
        reference_file: path of the reference.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    metrics: dict[str, Measures]
    prediction_file: str
    reference_file: str

    @property
    def case(self) -> str:
        """The file name of its prediction, which names the case: those of references may differ, or all be equal."""
        return re.split(r"[/\\]", self.prediction_file)[-1]

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the foreground classes in the reference or the prediction; NaN without any."""
        return _mean([measures.dice for measures in self.metrics.values()], skip_nan=True)


class Scores(BaseModel):
    """A `summary.json` (nnU-Net's schema, nnU-Net behaviour 12.2).

    Attributes:
        foreground_mean: nnU-Net's plain mean over the classes: NaN if no case has one of the classes.
        mean: mean over the cases by class key, without cases where the class is in neither map.
        metric_per_case: measures of each case.
        foreground_mean_present: mean over the classes that occur, equal to `foreground_mean` if all do; None in a file
            of nnU-Net.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    foreground_mean: Measures
    mean: dict[str, Measures]
    metric_per_case: tuple[CaseScores, ...]
    foreground_mean_present: Measures | None = None

    @classmethod
    def of(cls, cases: Sequence[CaseScores]) -> Scores:
        """Return the scores of at least one case; every case has the same classes, none of them background."""
        keys = list(cases[0].metrics)
        mean = {key: Measures.mean_of([case.metrics[key] for case in cases], skip_nan=True) for key in keys}
        return cls(
            foreground_mean=Measures.mean_of(list(mean.values()), skip_nan=False),
            mean=mean,
            metric_per_case=tuple(cases),
            foreground_mean_present=Measures.mean_of(list(mean.values()), skip_nan=True),
        )

    @property
    def mean_dice(self) -> float:
        """Mean foreground Dice over the classes that occur."""
        present = self.foreground_mean_present
        return self.foreground_mean.dice if present is None else present.dice

    def to_json(self) -> dict[str, Any]:
        """Return the document with nnU-Net's names."""
        return self.model_dump(by_alias=True, mode="python", exclude_none=True)

    def save(self, path: Path) -> None:
        """Write the summary as nnU-Net does, keys sorted and NaN bare, and a checksum."""
        write_checked_json(path, self.to_json(), indent=_INDENT, sort_keys=True)

    def save_csv(self, path: Path) -> None:
        """Write one line for each case and class, all measures in columns."""
        rows = [
            {"case": case.case, "class": key, **measures.model_dump(by_alias=True)}
            for case in self.metric_per_case
            for key, measures in case.metrics.items()
        ]
        with (
            atomic_path(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read a summary, ours or nnU-Net's."""
        return parse_document(cls, path)


def class_key_text(key: ClassKey) -> str:
    """Return a class as nnU-Net writes it: `1`, `(1, 2)`."""
    return str(key)


def class_key(text: str) -> ClassKey:
    """Convert a key of `summary.json` to the class.

    >>> class_key("1"), class_key("(1, 2)"), class_key("(3,)")
    (1, (1, 2), (3,))
    """
    if not text.startswith("("):
        return int(text)
    return tuple(int(part) for part in text.strip("()").split(",") if part.strip())


def evaluate(
    reference_dir: Path,
    prediction_dir: Path,
    *,
    labels: Labels,
    file_ending: str,
    reader: str,
    prediction_ending: str | None = None,
    workers: int | None = None,
    require_all: bool = False,
    extra: ExtraMetrics = OVERLAP_ALONE,
    ignore_label: int | None = None,
    known: Collection[int] | None = None,
    listed: Mapping[str, Path] = NONE_LISTED,
) -> Scores:
    """Score every prediction against its reference, which has the same name without ending or is listed.

    Args:
        labels: names the classes (or regions) and the ignore label.
        file_ending: of the references.
        reader: the class that reads them, as in the plan.
        prediction_ending: of the predictions; by default that of the references.
        extra: measures beside the overlap.
        require_all: a reference without a prediction is a problem too; by default only their number is logged.
        ignore_label: as of `evaluate_case`.
        known: values that predictions may have; others cause a warning. None allows all.
        listed: as of `pair_files`.

    Raises:
        DatasetError: there is no prediction at all.
        ProblemReport: predictions without reference, unreadable files, different shapes; all of them at once.
    """
    pairs = pair_files(
        reference_dir,
        prediction_dir,
        file_ending,
        prediction_ending=prediction_ending,
        require_all=require_all,
        listed=listed,
    )
    return evaluate_files(
        pairs,
        labels=labels,
        reader=reader,
        workers=workers,
        extra=extra,
        ignore_label=ignore_label,
        known=known,
    )


def evaluate_files(
    pairs: Sequence[tuple[Path, Path]],
    *,
    labels: Labels,
    reader: str,
    workers: int | None = None,
    extra: ExtraMetrics = OVERLAP_ALONE,
    change: Change | None = None,
    title: str = "evaluating",
    ignore_label: int | None = None,
    known: Collection[int] | None = None,
    label_map: Mapping[int, int] | None = None,
) -> Scores:
    """Score pairs of a reference and a prediction file, at least one.

    Args:
        pairs: reference first.
        labels: names the classes (or regions) and the ignore label.
        reader: the class that reads them, as in the plan.
        workers: threads, and cases in memory.
        extra: measures beside the overlap.
        change: applied to each predicted label map (*S) before it is scored.
        title: of the progress.
        ignore_label: as of `evaluate_case`.
        known: as of `evaluate`.
        label_map: from values in reference files to labels; by default that of `labels`.

    Raises:
        ProblemReport: unreadable files, different shapes; all of them at once.
    """
    ignored = labels.ignore_label if ignore_label is None else ignore_label
    reference_values = labels.label_map if label_map is None else label_map

    def score(pair: tuple[Path, Path]) -> _Scored | Problem:
        try:
            if not all(map(is_small, pair)):
                reference_header, header = (read_header(file, reader, is_label=True) for file in pair)
                if problem := _grid_problem(pair[1], header, reference_header):
                    return problem
            reference = read_label(pair[0], reader, label_map=reference_values)
            prediction = read_label(pair[1], reader)
            if problem := _grid_problem(pair[1], prediction.header, reference.header):
                return problem
            return _score_case(pair, reference, prediction, labels, ignored, extra, change)
        except SegwrightError as error:
            return Problem(where=pair[1].name, what=str(error))

    results = map_threads(score, pairs, workers=workers, title=title)
    problems = [result for result in results if isinstance(result, Problem)]
    if problems:
        raise ProblemReport(problems)
    scored = [result for result in results if isinstance(result, _Scored)]
    _warn(scored, known)
    return Scores.of([result.case for result in scored])


def evaluate_case(
    reference: npt.NDArray[np.integer],
    prediction: npt.NDArray[np.integer],
    labels: Labels,
    *,
    spacing: Sequence[float] | None = None,
    extra: ExtraMetrics = OVERLAP_ALONE,
    ignore_label: int | None = None,
) -> dict[str, Measures]:
    """Score one case, two label maps (*S); return metrics by class key.

    With `spacing` (mm per axis) volumes are added, in mm^3, except for flat images. Voxels whose reference is the
    ignore label (`ignore_label`, by default that of `labels`) count as background.
    """
    ignored = labels.ignore_label if ignore_label is None else ignore_label
    matrix = confusion(reference, prediction, ignore_label=ignored)
    return _measure(matrix, reference, prediction, labels, spacing, ignored, extra)


def _measure(
    matrix: Confusion,
    reference: npt.NDArray[np.integer],
    prediction: npt.NDArray[np.integer],
    labels: Labels,
    spacing: Sequence[float] | None,
    ignored: int | None,
    extra: ExtraMetrics,
) -> dict[str, Measures]:
    counts = {key: matrix.overlap(key) for key in labels.evaluation_classes()}
    if spacing is None:
        return {class_key_text(key): Measures.of(overlap) for key, overlap in counts.items()}
    known = None if ignored is None else reference != ignored
    voxel = math.prod(spacing) if has_volume(reference.shape, spacing) else None
    result = {}
    for key, overlap in counts.items():
        values: dict[str, float] = {}
        if voxel is not None:
            predicted, present = (overlap.tp + overlap.fp) * voxel, (overlap.tp + overlap.fn) * voxel
            values = {"Volume_pred_mm3": predicted, "Volume_ref_mm3": present, "Volume_error_mm3": predicted - present}
        if extra.surface or extra.lesions:
            masks = [class_mask(array, key) for array in (reference, prediction)]
            if known is not None:
                masks = [mask & known for mask in masks]
            values |= measure_masks(masks[0], masks[1], spacing, extra)
        result[class_key_text(key)] = Measures.of(overlap, **values)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """Scores of a case, the values of its prediction, and whether that was reoriented to the reference's grid."""

    case: CaseScores
    predicted: frozenset[int]
    was_reoriented: bool


def _grid_problem(file: Path, prediction: Header, reference: Header) -> Problem | None:
    """Return a problem if a prediction is not on the grid of its reference."""
    if find_reorientation(prediction, reference) is not None:
        return None
    if sorted(prediction.shape) != sorted(reference.shape):
        return Problem(
            where=file.name,
            what=f"prediction has shape {prediction.shape}, its reference {reference.shape}",
            remedy="both must lie on the grid of the image",
        )
    return grid_problem(prediction, reference, file=file.name, name="its reference")


def _score_case(
    files: tuple[Path, Path],
    true: Volume,
    predicted: Volume,
    labels: Labels,
    ignored: int | None,
    extra: ExtraMetrics,
    change: Change | None,
) -> _Scored:
    """Score a case whose two label maps are on the same grid, up to orientation."""
    reorient = find_reorientation(predicted.header, true.header)
    assert reorient is not None, "checked before"
    reference, prediction = (array[0].astype(np.int32) for array in (true.array, reorient(predicted.array)))
    if change is not None:
        prediction = change(prediction)
    matrix = confusion(reference, prediction, ignore_label=ignored)
    predicted_values = np.flatnonzero(matrix.counts.sum(axis=0))
    case = CaseScores(
        metrics=_measure(matrix, reference, prediction, labels, true.spacing, ignored, extra),
        prediction_file=str(files[1]),
        reference_file=str(files[0]),
    )
    return _Scored(
        case=case,
        predicted=frozenset(matrix.values[index] for index in predicted_values),
        was_reoriented=not reorient.is_identity,
    )


def _warn(scored: Sequence[_Scored], known: Collection[int] | None) -> None:
    """Warn once about unusual predictions that can be scored all the same."""
    if known is not None:
        odd = [each for each in scored if not each.predicted <= set(known)]
        if odd:
            foreign = sorted({value for each in odd for value in each.predicted} - {*known})[:_SHOWN_VALUES]
            logger.warning(
                "%d of %d predictions hold values that are no labels of the dataset (%s), first %s: they count as "
                "background",
                *(len(odd), len(scored), ", ".join(map(str, foreign)), odd[0].case.case),
            )
    else:
        _warn_of_unscored(scored)
    odd = [each for each in scored if each.was_reoriented]
    if odd:
        logger.warning(
            "%d of %d predictions are stored along other axes than their reference, first %s: they are "
            "reoriented to its grid",
            *(len(odd), len(scored), odd[0].case.case),
        )


def _warn_of_unscored(scored: Sequence[_Scored]) -> None:
    """Warn if predictions have none of the scored labels, or negative values."""
    predicted = set().union(*(each.predicted for each in scored)) - {0}
    keys = [class_key(text) for text in scored[0].case.metrics]
    labels = {value for key in keys for value in ((key,) if isinstance(key, int) else key)}
    shown = ", ".join(map(str, sorted(predicted)[:_SHOWN_VALUES]))
    if predicted and not predicted & labels:
        logger.warning(
            "no prediction holds any of the labels that are scored (%s), but others: %s; check what is scored",
            *(", ".join(map(str, sorted(labels))), shown),
        )
    elif min(predicted, default=0) < 0:
        logger.warning("predictions hold negative values (%s), which are no labels: they count as background", shown)


def _mean(values: Sequence[float], *, skip_nan: bool) -> float:
    kept = [value for value in values if not (skip_nan and not math.isfinite(value))]
    return float(np.mean(kept)) if kept else float("nan")
