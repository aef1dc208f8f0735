"""Read or create the splits of a dataset and compare them with its current cases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Literal

from segwright.api.checks.one_model import Fold
from segwright.api.session import Session
from segwright.core.errors import DatasetError
from segwright.data.crossval import splits
from segwright.data.crossval.groups import REGEX, Groups, absolute_source
from segwright.data.crossval.resolving import SplitMaker, SplitOptions
from segwright.data.crossval.strata import labels_of_cases

logger = getLogger(__name__)

DEFAULT_FOLDS = (0,)

_SHOWN_SCANS = 2


def split_options(groups: Groups | None, *, stratify: bool | None) -> SplitOptions:
    """Return how folds are made; a relative path of a table starts in the current folder."""
    return SplitOptions(groups=absolute_source(groups, Path.cwd()), stratify=stratify)


def dataset_splits(
    session: Session, *, write: bool = True, stratify: bool = True, workers: int | None = None
) -> list[splits.Split]:
    """Return the splits of the workspace, else of the raw dataset, else new ones.

    Outdated splits of ours are remade as long as no fold was trained with them.

    Args:
        session: dataset and workspace.
        write: save new splits.
        stratify: read the label maps to spread labels evenly, if new splits are to be so; the number of folds is the
            same without.
        workers: threads.
    """
    read_labels = partial(labels_of_cases, session.dataset, workers=workers) if stratify else None
    return _maker(session).resolve(write=write, in_use=_has_numbered_fold(session), read_labels=read_labels)


def select_fold(session: Session, fold: Fold, *, write: bool, stratify: bool = True) -> splits.Split:
    """Return the cases of one fold.

    Raises:
        DatasetError: the fold or one of its cases does not exist.
    """
    identifiers = session.dataset.identifiers
    if fold == "all":
        return splits.select([], identifiers, fold)
    folds = dataset_splits(session, write=write, stratify=stratify)
    return splits.select(folds, identifiers, fold, groups=_maker(session).groups)


def require_folds(session: Session, folds: Sequence[Fold]) -> None:
    """Check that every fold exists, before anything is written.

    Raises:
        DatasetError: a fold or one of its cases does not exist.
    """
    for fold in folds:
        if fold != "all":
            select_fold(session, fold, write=False, stratify=False)


def require_options(session: Session) -> None:
    """Check that folds can be made as this call asks for it, before any work starts.

    Raises:
        SegwrightError: groups cannot be read, or the present splits are not to be replaced.
    """
    if session.split_options.are_given:
        dataset_splits(session, write=False, stratify=False)


def chosen_folds(session: Session, wanted: Sequence[int] | Literal["all"] | None) -> tuple[int, ...]:
    """Return the folds to train after checking that they exist.

    Raises:
        DatasetError: a fold or one of its cases does not exist.
    """
    every = range(len(dataset_splits(session, write=False, stratify=False)))
    if wanted is None:
        logger.info("fold 0; --folds all trains all %d", len(every))
    numbers = tuple(every) if wanted == "all" else tuple(dict.fromkeys(DEFAULT_FOLDS if wanted is None else wanted))
    require_folds(session, numbers)
    warn_of_unused_cases(session)
    return numbers


def write_splits(session: Session, *, workers: int | None = None) -> None:
    """Write the splits of a dataset that is planned, unless it has too few cases and no groups.

    Raises:
        DatasetError: they name cases that the dataset does not have.
    """
    identifiers = session.dataset.identifiers
    present = session.workspace.splits_file(session.name).is_file() or session.raw_splits.is_file()
    if len(identifiers) < splits.NUM_FOLDS and not present and not session.split_options.are_given:
        return
    folds = dataset_splits(session, workers=workers)
    for number, fold in enumerate(folds):
        if unknown := splits.unknown_identifiers(fold, identifiers):
            raise DatasetError(
                f"{session.workspace.splits_file(session.name)}: fold {number} names {splits.shorten(unknown)}, which "
                "the dataset does not have; put back the files, or delete the file to get new folds (models of the "
                "old ones are then not comparable)"
            )


def warn_of_several_scans(session: Session) -> None:
    """Warn if cases look like scans of one subject in several folds, and nothing says which cases belong together."""
    file, identifiers = session.workspace.splits_file(session.name), session.dataset.identifiers
    if not file.is_file() or session.raw_splits.is_file() or _maker(session).knows_groups:
        return
    folds = dataset_splits(session, write=False, stratify=False)
    subjects = sorted({subject for fold in folds for subject in splits.shared_subjects(fold)})
    if not subjects:
        return
    scans = [name for name in sorted(identifiers) if name.startswith(subjects[0])]
    pattern = splits.subject_pattern(identifiers)
    logger.warning(
        "%s: by their names, cases such as %s are of one subject, but train and val of a fold share %d such subjects; "
        "%s keeps each in one fold, --groups none leaves the folds as they are",
        *(session.name, " and ".join(scans[:_SHOWN_SCANS]), len(subjects)),
        "--groups FILE.csv:COLUMN" if pattern is None else f"--groups '{REGEX}{pattern}'",
    )


def warn_of_unused_cases(session: Session) -> None:
    """Warn about cases that no fold trains on or validates with; log if the folds were not made by us."""
    file = session.workspace.splits_file(session.name)
    if not file.is_file() and not session.raw_splits.is_file():
        return
    current = dataset_splits(session, write=False, stratify=False)
    left_out = splits.left_out(current, session.dataset.identifiers)
    if not left_out:
        if not session.raw_splits.is_file() and not _maker(session).is_ours(splits.load(file)):
            logger.info(
                "%s holds other folds than the default ones (edited by hand, or damaged), and they are used; delete "
                "the file to get the default ones, unless folds are trained",
                file,
            )
        return
    given = session.raw_splits if session.raw_splits.is_file() else None
    logger.warning(
        "%d case%s of %s %s in no fold of %s, so no fold trains on or validates with %s: %s; %s",
        *(len(left_out), "s" * (len(left_out) > 1), session.name, "are" if len(left_out) > 1 else "is"),
        *(given or file, "them" if len(left_out) > 1 else "it", splits.shorten(left_out)),
        f"add them there and delete {file}"
        if given is not None
        else "delete the file to get new folds of all cases and train every fold again, since folds of different "
        "splits are not comparable; or add them to folds in the file; or train on all cases with fold all",
    )


def _maker(session: Session) -> SplitMaker:
    dataset = session.dataset
    return SplitMaker(
        session.workspace.splits_file(session.name),
        dataset.identifiers,
        raw_file=session.raw_splits,
        options=session.split_options,
        declared=dataset.description.groups,
        folder=dataset.folder,
    )


def _has_numbered_fold(session: Session) -> bool:
    """Return whether a fold of the splits has a checkpoint; fold `all` does not use them."""
    results = session.workspace.results / session.name
    return any(results.glob("*/fold_[0-9]*/checkpoint_*"))
