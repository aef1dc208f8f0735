"""Predictions and the references of the same file names."""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger
from pathlib import Path

from segwright.core.errors import DatasetError, Problem, ProblemReport

logger = getLogger(__name__)


def pair_files(
    reference_dir: Path, prediction_dir: Path, file_ending: str, *, require_all: bool = False
) -> list[tuple[Path, Path]]:
    """Return every prediction with the reference of the same file name, reference first; arguments as of `evaluate`.

    Raises:
        DatasetError: there is no prediction at all.
        ProblemReport: predictions without reference; all of them at once.
    """
    predictions, references = (_label_files(folder, file_ending) for folder in (prediction_dir, reference_dir))
    if not predictions:
        raise DatasetError(f"{prediction_dir}: no prediction ends in {file_ending}; give the folder that holds them")
    _check_pairs(predictions, references, reference_dir, require_all=require_all)
    return [(references[name], file) for name, file in predictions.items()]


def _label_files(folder: Path, file_ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    files = (path for path in folder.iterdir() if path.name.endswith(file_ending) and not path.name.startswith("."))
    return {path.name: path for path in sorted(files)}


def _check_pairs(
    predictions: Iterable[str], references: Iterable[str], reference_dir: Path, *, require_all: bool
) -> None:
    predicted, referenced = set(predictions), set(references)
    problems = [
        Problem(
            where=name,
            what=f"prediction without a reference in {reference_dir}",
            remedy="give the folder with its labels, or remove the prediction",
        )
        for name in sorted(predicted - referenced)
    ]
    missing = sorted(referenced - predicted)
    if require_all:
        problems += [
            Problem(where=name, what="reference without a prediction", remedy="predict the case") for name in missing
        ]
    elif missing:
        logger.info("%d of %d references have no prediction and are not scored", len(missing), len(referenced))
    if problems:
        raise ProblemReport(problems)
