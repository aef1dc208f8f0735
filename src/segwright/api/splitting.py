"""Read or create the splits of a dataset and compare them with its current cases."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

from segwright.api.checks.one_model import Fold
from segwright.api.session import Session
from segwright.data import splits

logger = getLogger(__name__)


def dataset_splits(session: Session, *, write: bool = True) -> list[splits.Split]:
    """Return the splits of the workspace, else of the raw dataset, else nnU-Net's default.

    Default splits of a changed dataset are remade as long as no fold was trained with them.
    """
    return splits.resolve(
        session.workspace.splits_file(session.name),
        session.dataset.identifiers,
        raw_file=session.raw_splits,
        write=write,
        in_use=_has_numbered_fold(session),
    )


def require_folds(session: Session, folds: Sequence[Fold]) -> None:
    """Check that every fold exists, before anything is written.

    Raises:
        DatasetError: a fold or one of its cases does not exist.
    """
    for fold in folds:
        if fold != "all":
            splits.select(dataset_splits(session, write=False), session.dataset.identifiers, fold)


def warn_of_unused_cases(session: Session) -> None:
    """Warn about cases that no fold trains on or validates with; log if the folds are not the default ones."""
    file = session.workspace.splits_file(session.name)
    if not file.is_file() and not session.raw_splits.is_file():
        return
    current = dataset_splits(session, write=False)
    left_out = splits.left_out(current, session.dataset.identifiers)
    if not left_out:
        if not session.raw_splits.is_file() and not splits.are_default(current, session.dataset.identifiers):
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


def _has_numbered_fold(session: Session) -> bool:
    """Return whether a fold of the splits has a checkpoint; fold `all` does not use them."""
    results = session.workspace.results / session.name
    return any(results.glob("*/fold_[0-9]*/checkpoint_*"))
