"""Match predictions with references: by file name, or by the references that a dataset lists."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Final

from segwright.core.errors import DatasetError, Problem, ProblemReport
from segwright.core.files.names import path_problem
from segwright.data.unmatched_files import entries, possible_label_map, similar_label

logger = getLogger(__name__)

NONE_LISTED: Final[Mapping[str, Path]] = MappingProxyType({})


def pair_files(
    reference_dir: Path,
    prediction_dir: Path,
    file_ending: str,
    *,
    prediction_ending: str | None = None,
    require_all: bool = False,
    listed: Mapping[str, Path] = NONE_LISTED,
) -> list[tuple[Path, Path]]:
    """Return pairs of reference and prediction files; arguments as of `evaluate`.

    Args:
        listed: references with other names than their predictions, by the name of the case.

    Raises:
        DatasetError: there is no prediction at all.
        ProblemReport: predictions without reference; all of them at once.
    """
    predicted_ending = prediction_ending or file_ending
    predictions = _label_files(prediction_dir, predicted_ending)
    references = _label_files(reference_dir, file_ending)
    if not predictions:
        hint = possible_label_map(prediction_dir, predicted_ending)
        raise DatasetError(
            f"{prediction_dir}: no prediction ends in {predicted_ending}{hint}; give the folder that holds them"
        )
    if not listed.keys().isdisjoint(predictions):
        known = set(listed.values())
        references = {**{name: file for name, file in references.items() if file not in known}, **listed}
    _check_pairs(
        {name: file.name for name, file in predictions.items()},
        {name: file.name for name, file in references.items()},
        reference_dir,
        file_ending,
        require_all=require_all,
    )
    return [(references[name], file) for name, file in predictions.items()]


def _label_files(folder: Path, file_ending: str) -> dict[str, Path]:
    """Return the label maps of a folder by the name of their case."""
    wrong = path_problem(folder, "folder")
    if wrong:
        raise DatasetError(f"{folder}: {wrong}")
    names = [entry.name for entry in entries(folder) if entry.name.endswith(file_ending) and entry.kind != "folder"]
    return {name.removesuffix(file_ending): folder / name for name in names}


def _check_pairs(
    predictions: Mapping[str, str],
    references: Mapping[str, str],
    reference_dir: Path,
    file_ending: str,
    *,
    require_all: bool,
) -> None:
    """Raise a report of what has no counterpart; file names are given by the name of their case."""
    without = sorted(predictions[case] for case in predictions.keys() - references.keys())
    listed = entries(reference_dir) if without else []
    problems = [
        Problem(
            where=name,
            what=f"prediction without a reference in {reference_dir}{similar_label(name, file_ending, listed)}",
            remedy="give the folder with its labels, or remove the prediction",
        )
        for name in without
    ]
    missing = sorted(references[case] for case in references.keys() - predictions.keys())
    if require_all:
        problems += [
            Problem(where=name, what="reference without a prediction", remedy="predict the case") for name in missing
        ]
    elif missing:
        logger.info("%d of %d references have no prediction and are not scored", len(missing), len(references))
    if problems:
        raise ProblemReport(problems)
