"""Collect the out-of-fold predictions of a model over its trained folds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from segwright.core.errors import ModelError, Problem, ProblemReport, WorkspaceError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.names import below
from segwright.data.description import load_description
from segwright.data.images.image_io import files_beside
from segwright.evaluation.scores import Scores
from segwright.workspace import DATASET_JSON, PLANS_JSON, SUMMARY_JSON, Workspace

VALIDATION: Final = "validation"

_FOLD_PREFIX = "fold_"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidation:
    """Out-of-fold predictions of one model: fold to case to file, folds and cases in order."""

    model: Path
    files: Mapping[int, Mapping[str, Path]]

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds with predictions."""
        return tuple(self.files)

    @property
    def cases(self) -> dict[str, Path]:
        """The prediction of every case."""
        return {case: file for files in self.files.values() for case, file in files.items()}

    def only(self, folds: Sequence[int]) -> CrossValidation:
        """Return the predictions of some folds."""
        return replace(self, files={fold: files for fold, files in self.files.items() if fold in folds})


def validated_folds(model: Path) -> tuple[int, ...]:
    """Return the numbered folds whose held-out cases are predicted and scored; `fold_all` has none."""
    names = [file.parent.parent.name for file in model.glob(f"{_FOLD_PREFIX}*/{VALIDATION}/{SUMMARY_JSON}")]
    numbers = [name.removeprefix(_FOLD_PREFIX) for name in names]
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def read_crossval(model: Path, folds: Sequence[int] | None = None) -> CrossValidation:
    """Find the out-of-fold predictions of a model folder, ours or nnU-Net's.

    Args:
        model: the folder that holds `fold_k`.
        folds: which ones; all that have predictions by default.

    Raises:
        ModelError: a requested fold, or every fold, has no validation.
        ProblemReport: predictions are missing, or in two folds; all problems at once.
    """
    available = validated_folds(model)
    missing = sorted(set(folds or ()) - set(available))
    if missing or not available:
        raise ModelError(f"{model}: {_not_predicted(missing, available)}; train with 'segwright train'")
    ending = load_description(model / DATASET_JSON).file_ending
    files: dict[int, dict[str, Path]] = {}
    problems = []
    seen: dict[str, int] = {}
    for fold in available if folds is None else sorted(set(folds)):
        folder = Workspace.fold_folder(model, fold) / VALIDATION
        cases = sorted(case.case.removesuffix(ending) for case in Scores.load(folder / SUMMARY_JSON).metric_per_case)
        files[fold] = {case: below(folder, f"{case}{ending}") for case in cases}
        for case, file in files[fold].items():
            if not file.is_file():
                remedy = f"remove the {SUMMARY_JSON} beside it; 'segwright train --resume' then predicts it again"
                problems.append(Problem(where=str(file), what="no such file", remedy=remedy))
            if case in seen:
                what = f"held out by fold {seen[case]} and by fold {fold}"
                problems.append(Problem(where=f"case {case}", what=what, remedy="choose folds of one set of splits"))
            seen[case] = fold
    if problems:
        raise ProblemReport(problems)
    return CrossValidation(model=model, files=files)


def accumulate(predictions: CrossValidation, target: Path) -> Scores:
    """Copy the predictions of all folds into one folder with one `summary.json` (nnU-Net behaviour 12.3).

    Raises:
        WorkspaceError: the folder already exists and is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise WorkspaceError(f"{target}: already exists; remove it or choose a new folder")
    cases = []
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for name in (DATASET_JSON, PLANS_JSON):
            if (predictions.model / name).is_file():
                shutil.copyfile(predictions.model / name, temporary / name)
        for files in predictions.files.values():
            for file in files.values():
                for each in (file, *files_beside(file)):
                    shutil.copyfile(each, temporary / each.name)
        for fold in predictions.folds:
            summary = Scores.load(Workspace.fold_folder(predictions.model, fold) / VALIDATION / SUMMARY_JSON)
            for case in summary.metric_per_case:
                cases.append(case.model_copy(update={"prediction_file": str(below(target, case.case))}))
        scores = Scores.of(sorted(cases, key=lambda case: case.case))
        scores.save(temporary / SUMMARY_JSON)
    return scores


def accumulated_name(folds: Sequence[int]) -> str:
    """Return nnU-Net's name of the folder of accumulated predictions.

    >>> accumulated_name((0, 2))
    'crossval_results_folds_0_2'
    """
    return f"crossval_results_folds_{'_'.join(map(str, folds))}"


def _not_predicted(missing: Sequence[int], available: Sequence[int]) -> str:
    """Return which folds lack predictions, and which have them."""
    if len(missing) > 1:
        what = f"folds {', '.join(map(str, missing))} have not predicted their held-out cases"
    else:
        what = f"{f'fold {missing[0]} has not' if missing else 'no fold has'} predicted its held-out cases"
    if not available:
        return what
    listed = ", ".join(map(str, available))
    return f"{what}; " + (f"folds {listed} have" if len(available) > 1 else f"fold {listed} has")
