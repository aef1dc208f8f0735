"""Detect data that changed after a fold was trained, and score the fold again with current labels."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from segwright.api.preparing import cases_folder
from segwright.api.session import Session
from segwright.api.splitting import dataset_splits
from segwright.core.errors import ModelError
from segwright.data.crossval import splits
from segwright.data.crossval.splits import Split, shorten
from segwright.data.plan import Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.data.stage_cache import hash_files
from segwright.data.training_data import DataChanges, TrainingData, changes, entries
from segwright.evaluation.crossval import VALIDATION
from segwright.inference.models.selected import SELECTION_JSON, newer_folds
from segwright.workspace import SUMMARY_JSON

logger = getLogger(__name__)

REPORT_HTML = "report.html"


def record_training_data(session: Session, plan: Plan, configuration: str, folder: Path, split: Split) -> None:
    """Record the data that a fold is trained with; its cases must be preprocessed."""
    store = CaseStore(cases_folder(session, plan, configuration))
    cases = {}
    for case, paths in _files(session).items():
        if case in {*split.train, *split.val}:
            files = hash_files(paths, store.recorded_sources(case))
            cases[case] = entries(session.dataset.folder, paths, files)
    TrainingData(
        dataset=str(session.dataset.folder.absolute()),
        raw_digest=session.raw_digest,
        train=split.train,
        val=split.val,
        cases=cases,
        label_map=session.dataset.description.label_map,
    ).save(folder)


def require_same_cases(session: Session, plan: Plan, configuration: str, folder: Path, split: Split) -> None:
    """Check that a resumed training has the cases it was started with; warn about changed files.

    Raises:
        ModelError: its cases differ.
    """
    data = TrainingData.read(folder)
    if data is None:
        return
    if not _is_same_split(data.split, split):
        raise ModelError(
            f"{folder}: was started with other cases than splits_final.json lists now ({_difference(data, split)}); it "
            "may have trained on its validation cases; restore the splits, or delete the folder to start again"
        )
    if data.raw_digest != session.raw_digest:
        _warn_of_changes(folder, _changes(session, plan, configuration, data), "it continues with the new ones")


def refresh_scores(session: Session, plan: Plan, configuration: str, folder: Path) -> None:
    """Warn how the data of a finished fold changed since it was trained, and score it with the current labels."""
    data = TrainingData.read(folder)
    if data is None:
        return
    fold = folder.name.removeprefix("fold_")
    number = int(fold) if fold.isdecimal() else None
    current = [] if number is None else dataset_splits(session, write=False)
    if number is None or number < len(current):
        split = splits.select([], session.dataset.identifiers, "all") if number is None else current[number]
        if not _is_same_split(data.split, split):
            logger.warning(
                "%s was trained with other cases than its split lists now (%s); delete it to train with these",
                *(folder, _difference(data, split)),
            )
    if data.raw_digest == session.raw_digest:
        return
    changed = _changes(session, plan, configuration, data)
    _warn_of_changes(folder, changed, f"its scores use the new ones; remove {folder} to train it again")
    data = _rescore(session, plan, folder, data, changed)
    data = data.model_copy(update={"dataset": str(session.dataset.folder.absolute())})
    if not (changed.labels or changed.images or changed.gone):
        paths = _files(session)
        now = {case: entries(session.dataset.folder, paths[case], files) for case, files in changed.now.items()}
        data = data.model_copy(update={"raw_digest": session.raw_digest, "cases": now})
    if data != TrainingData.read(folder):
        data.save(folder)


def changes_since_training(folder: Path) -> list[str]:
    """Describe what changed since a fold was trained, for files that still exist at their recorded paths."""
    data = TrainingData.read(folder)
    if data is None:
        return []
    changed = changes(data, data.files())
    return [
        f"{kind} of {_counted(cases)} changed since {folder.name} was trained: {shorten(cases)}"
        for kind, cases in (("labels", changed.labels), ("images", changed.images))
        if cases
    ]


def outdated_results(results: Path) -> list[str]:
    """Return a sentence for each selected model or report of a dataset that is older than a fold."""
    lines = []
    for file in sorted(results.glob(f"*/{SELECTION_JSON}")):
        newer = newer_folds(file.parent)
        if newer:
            lines.append(f"{file.parent} is older than {shorten(newer)}; 'segwright select DATASET' updates it")
    report = results / REPORT_HTML
    newest = max(reported_documents(results), key=lambda path: path.stat().st_mtime_ns, default=None)
    if report.is_file() and newest is not None and newest.stat().st_mtime_ns > report.stat().st_mtime_ns:
        lines.append(f"{report} is older than {newest.relative_to(results)}; 'segwright report {results}' updates it")
    return lines


def reported_documents(results: Path) -> list[Path]:
    """Return the scores and selections that the report of a dataset shows."""
    scores = results.glob(f"*/fold_*/{VALIDATION}/{SUMMARY_JSON}")
    return sorted([*scores, *results.glob(f"*/{SELECTION_JSON}")])


def record_scored_labels(session: Session, plan: Plan, configuration: str, folder: Path) -> None:
    """Record the labels with which a fold was just scored."""
    data = TrainingData.read(folder)
    if data is None or data.raw_digest == session.raw_digest:
        return
    changed = _changes(session, plan, configuration, data)
    _with_scored_labels(data, changed, session.dataset.description.label_map).save(folder)


def _files(session: Session) -> dict[str, list[Path]]:
    """Return the image files and then the label file of each labelled case."""
    return {case.identifier: [*case.images, case.label] for case in session.dataset.cases if case.label is not None}


def _changes(session: Session, plan: Plan, configuration: str, data: TrainingData) -> DataChanges:
    store = CaseStore(cases_folder(session, plan, configuration))
    label_map = session.dataset.description.label_map
    return changes(data, _files(session), store.recorded_sources, label_map=label_map)


def _warn_of_changes(folder: Path, changed: DataChanges, consequence: str) -> None:
    for kind, cases in (("labels", changed.labels), ("images", changed.images)):
        if cases:
            logger.warning(
                "%s of %s changed since %s was trained: %s; its network learned the old ones, %s",
                *(kind, _counted(cases), folder, shorten(cases), consequence),
            )
    if changed.gone:
        logger.warning(
            "%s was trained with %s that the dataset no longer has: %s",
            *(folder, _counted(changed.gone), shorten(changed.gone)),
        )


def _rescore(session: Session, plan: Plan, folder: Path, data: TrainingData, changed: DataChanges) -> TrainingData:
    """Score the held-out predictions of a fold with current labels if they changed; return the new record."""
    validation = folder / VALIDATION
    now = changed.now
    label_map = session.dataset.description.label_map
    stale = [case for case in data.val if case in now and (now[case][-1].sha256, label_map) != data.scored_label(case)]
    if not stale or not (validation / SUMMARY_JSON).is_file():
        return data
    references = {case: files[-1] for case, files in _files(session).items()}
    predictions = {case: validation / f"{case}{session.dataset.description.file_ending}" for case in data.val}
    if any(case not in references or not file.is_file() for case, file in predictions.items()):
        logger.warning(
            "%s: scores are of older labels and cannot be updated, since predictions or labels are missing; "
            "delete %s and train with --resume",
            *(validation, validation / SUMMARY_JSON),
        )
        return data
    from segwright.training.validation.final import score

    logger.info("%s: scoring held-out cases with labels that changed: %s", folder, shorten(stale))
    score(references, predictions, validation, labels=session.dataset.labels, reader=plan.image_reader_writer)
    return _with_scored_labels(data, changed, label_map)


def _with_scored_labels(data: TrainingData, changed: DataChanges, label_map: dict[int, int]) -> TrainingData:
    """Return the record with the current labels as those that held-out cases are scored with."""
    current = {case: changed.now[case][-1].sha256 for case in data.val if case in changed.now}
    scored = {case: sha for case, sha in current.items() if sha != data.cases[case][-1][3]}
    scored_map = None if label_map == data.label_map else label_map
    return data.model_copy(update={"scored": scored, "scored_label_map": scored_map})


def _is_same_split(one: Split, other: Split) -> bool:
    return set(one.train) == set(other.train) and set(one.val) == set(other.val)


def _difference(data: TrainingData, split: Split) -> str:
    parts = (
        ("no longer in training", set(data.train) - set(split.train)),
        ("new in training", set(split.train) - set(data.train)),
        ("no longer held out", set(data.val) - set(split.val)),
        ("newly held out", set(split.val) - set(data.val)),
    )
    return "; ".join(f"{what}: {shorten(sorted(cases))}" for what, cases in parts if cases)


def _counted(cases: Sequence[str]) -> str:
    return f"{len(cases)} case{'s' * (len(cases) > 1)}"
