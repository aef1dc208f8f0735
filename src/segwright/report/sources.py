"""Find and read the files that a report shows: plan, scores and records of a model folder and its folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segwright.core.errors import ModelError, SegwrightError
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import parse_document, read_checked_json
from segwright.data.description import DatasetDescription, load_description
from segwright.data.fingerprint import Fingerprint
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.evaluation.crossval import VALIDATION
from segwright.evaluation.scores import Scores
from segwright.inference.models.selected import is_selected, member_folders
from segwright.training.monitoring.loggers import merge_rows, read_rows
from segwright.workspace import DATASET_JSON, FINGERPRINT_JSON, PLANS_JSON, SUMMARY_JSON, TRAIN_JSON

METRICS_JSONL = "metrics.jsonl"

ALL = "all"
"""Name of the fold that trains on every case."""

_FOLD_PREFIX = "fold_"
_CHECKPOINTS = ("final", "best", "latest")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRecord:
    """Records of one trained fold.

    Attributes:
        name: number, or `all`.
        folder: folder of the fold.
        training: `train.json`; empty if missing.
        epochs: rows of `metrics.jsonl`.
        scores: scores of the held-out cases, None if they were not predicted.
        weights: name and SHA-256 of the checkpoint used for prediction; empty if there is none.
    """

    name: str
    folder: Path
    training: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]
    scores: Scores | None
    weights: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model folder with the records of its folds."""

    folder: Path
    dataset: str
    configuration_name: str
    plan: Plan
    description: DatasetDescription
    fingerprint: Fingerprint | None
    folds: tuple[FoldRecord, ...]

    @property
    def labels(self) -> Labels:
        """Labels of the dataset."""
        return Labels.from_description(self.description)

    @property
    def configuration(self) -> Configuration:
        """The trained configuration."""
        return self.plan.configuration(self.configuration_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSet:
    """Scored predictions.

    Attributes:
        title: heading of the set.
        note: how to interpret the scores; may be empty.
        scores: scores of all cases.
        folders: further places to look for predictions that are not at the path in the scores.
    """

    title: str
    note: str
    scores: Scores
    folders: tuple[Path, ...]

    @property
    def num_cases(self) -> int:
        """Number of scored cases."""
        return len(self.scores.metric_per_case)


def locate(path: Path) -> tuple[tuple[Path, str | None], ...]:
    """Find the model folders under a path, each with the selected fold, or None for all folds.

    Args:
        path: a model folder, one of its folds, the output of `select`, the results of a dataset, a results tree or a
            work folder.

    Raises:
        ModelError: no trained model, or models of several datasets.
    """
    path = path.absolute()
    if path.name.startswith(_FOLD_PREFIX) and _is_model(path.parent):
        return ((path.parent, path.name.removeprefix(_FOLD_PREFIX)),)
    if _is_model(path):
        return ((path, None),)
    if is_selected(path):
        return tuple((folder, None) for folder in member_folders(path))
    for pattern in ("*", "*/*", "results/*/*"):
        models = sorted(folder for folder in path.glob(pattern) if _is_model(folder))
        datasets = sorted({folder.parent for folder in models})
        if len(datasets) > 1:
            raise ModelError(
                f"{path}: contains models of several datasets ({', '.join(folder.name for folder in datasets)}); "
                f"name one of them, for instance {datasets[0]}"
            )
        if models:
            return tuple((folder, None) for folder in models)
    what = "contains no trained model" if path.is_dir() else "no such folder"
    raise ModelError(
        f"{path}: {what}; give a model folder (with {PLANS_JSON} and fold_0), a fold, or the work folder of a run"
    )


def read_model(folder: Path, fold: str | None = None) -> ModelRecord:
    """Read the records of a model folder.

    Args:
        folder: folder with `plans.json`, `dataset.json` and `fold_k`.
        fold: read only this one.

    Raises:
        SegwrightError: a document is damaged.
    """
    plan = Plan.load(folder / PLANS_JSON)
    names = [path.name.removeprefix(_FOLD_PREFIX) for path in folder.glob(f"{_FOLD_PREFIX}*") if path.is_dir()]
    chosen = [name for name in sorted(names, key=_fold_order) if fold in (None, name)]
    folds = tuple(read_fold(folder / f"{_FOLD_PREFIX}{name}") for name in chosen)
    fingerprint = folder / FINGERPRINT_JSON
    return ModelRecord(
        folder=folder,
        dataset=plan.dataset_name,
        configuration_name=_configuration_name(folder, plan, folds),
        plan=plan,
        description=load_description(folder / DATASET_JSON),
        fingerprint=parse_document(Fingerprint, fingerprint) if fingerprint.is_file() else None,
        folds=folds,
    )


def read_fold(folder: Path) -> FoldRecord:
    """Read the records of a fold that exist."""
    record, summary = folder / TRAIN_JSON, folder / VALIDATION / SUMMARY_JSON
    return FoldRecord(
        name=folder.name.removeprefix(_FOLD_PREFIX),
        folder=folder,
        training=_record(record) if record.is_file() else {},
        epochs=_rows(folder),
        scores=Scores.load(summary) if summary.is_file() else None,
        weights=_weights(folder),
    )


def _record(path: Path) -> Mapping[str, Any]:
    """Read and check `train.json`.

    Raises:
        ModelError: the file is damaged.
    """
    document = read_checked_json(path)
    kinds = {"notes": list, "config": dict, "versions": dict, "cases": dict}
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected a JSON object; the file is damaged")
    for key, kind in kinds.items():
        if key in document and not isinstance(document[key], kind):
            raise ModelError(f"{path}: '{key}' is a {type(document[key]).__name__}; the file is damaged")
    return document


def score_sets(model: ModelRecord, more: Sequence[Path] = ()) -> tuple[ScoreSet, ...]:
    """Return the score sets of a model: held-out cases pooled over folds, then other summaries.

    Args:
        model: the model; folds without validation are skipped.
        more: further `summary.json` files of predictions by this model.
    """
    sets = []
    held_out = [(fold, fold.scores) for fold in model.folds if fold.scores is not None and fold.name != ALL]
    if held_out:
        names = ", ".join(fold.name for fold, _ in held_out)
        sets.append(
            ScoreSet(
                title=f"Held-out cases of fold{'s' if len(held_out) > 1 else ''} {names}",
                note="Each case was predicted by the fold that was not trained on it.",
                scores=_pool([scores for _, scores in held_out]),
                folders=tuple(fold.folder / VALIDATION for fold, _ in held_out),
            )
        )
    for fold in model.folds:
        if fold.name == ALL and fold.scores is not None:
            sets.append(
                ScoreSet(
                    title="Cases of fold all",
                    note="These are training cases: their scores do not show the performance on new cases.",
                    scores=fold.scores,
                    folders=(fold.folder / VALIDATION,),
                )
            )
    sets += [_further_set(file) for file in more]
    return tuple(sets)


def _further_set(file: Path) -> ScoreSet:
    """Read a summary that is not in a fold of the model."""
    folder, scores = file.absolute().parent, Scores.load(file)
    if not is_selected(folder):
        return ScoreSet(title=f"Predictions in {folder.name}", note="", scores=scores, folders=(file.parent,))
    note = "Each case was predicted by folds not trained on it, two models averaged; before post-processing."
    single = "Each case was predicted by the fold that was not trained on it; before post-processing."
    several = len(member_folders(folder)) > 1
    return ScoreSet(title="Held-out cases", note=note if several else single, scores=scores, folders=())


def _pool(several: Sequence[Scores]) -> Scores:
    """Pool the cases of several folds; the scores of a single fold are unchanged."""
    if len(several) == 1:
        return several[0]
    return Scores.of([case for scores in several for case in scores.metric_per_case])


def _is_model(folder: Path) -> bool:
    """Return whether a folder is a model; a folder of predictions has both documents too, but no fold."""
    documents = (folder / PLANS_JSON, folder / DATASET_JSON)
    return all(file.is_file() for file in documents) and any(folder.glob(f"{_FOLD_PREFIX}*/"))


def _configuration_name(folder: Path, plan: Plan, folds: Sequence[FoldRecord]) -> str:
    """Return the name of the trained configuration, from the record or else from the folder's name."""
    for fold in folds:
        if "configuration" in fold.training:
            return str(fold.training["configuration"])
    named = folder.name.rpartition("__")[2]
    if named in plan.configurations:
        return named
    raise ModelError(
        f"{folder}: the configuration is unknown: it is neither in {TRAIN_JSON} nor in the folder's name; "
        f"rename the folder to Trainer__plans__CONFIGURATION, with one of {', '.join(plan.configuration_names)}"
    )


def _rows(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """Read the metrics of a fold by epoch; damaged lines are replaced from its checkpoint if possible."""
    rows = read_rows(folder / METRICS_JSONL)
    if [row["epoch"] for row in rows] == list(range(len(rows))):
        return tuple(rows)
    for name in _CHECKPOINTS:
        try:
            document = read_checked_json(folder / f"checkpoint_{name}.json")
        except SegwrightError:
            continue
        logged = document.get("logging") if isinstance(document, dict) else None
        if isinstance(logged, list) and all(isinstance(row, dict) for row in logged):
            return tuple(merge_rows(rows, logged))
    return tuple(rows)


def _weights(folder: Path) -> Mapping[str, str]:
    for name in _CHECKPOINTS:
        file = folder / f"checkpoint_{name}.safetensors"
        if file.is_file():
            return {file.name: file_hash(file)}
    return {}


def _fold_order(name: str) -> tuple[bool, int, str]:
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
