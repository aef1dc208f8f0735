"""One dataset in one workspace: what a verb works on, and what is known about the freshness of each stage."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from segwright.core.errors import Problem, WorkspaceError
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.core.files.atomic_io import content_hash, sweep_leftovers
from segwright.core.files.locks import locked
from segwright.data.dataset import NO_ENVIRONMENT, Dataset, load
from segwright.data.stage_cache import RawIdentity, StageCache, identify, listing_digest
from segwright.workspace import DATASET_JSON, SPLITS_JSON, Workspace

DEFAULT_WORK = Path("segwright-work")
TRAINER = "Trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A loaded dataset, where its results go, a digest of its raw files, and variables that its file lists may name.

    `trainer` is the reference of the class that trains, `module:Class`, None for ours. `trust` says which code the work
    folder's files may have imported.
    """

    workspace: Workspace
    dataset: Dataset
    stage_cache: StageCache
    raw_state: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    trainer: str | None = None
    trust: CodeTrust = TRUST_NONE

    @property
    def trainer_name(self) -> str:
        """Name of the class that trains, as in the model folder's name."""
        return TRAINER if self.trainer is None else self.trainer.rpartition(":")[2].rpartition(".")[2]

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset.name

    @property
    def raw_splits(self) -> Path:
        """Where the raw dataset may keep splits of its own."""
        return self.dataset.folder / SPLITS_JSON


def open_session(
    dataset: str | Path,
    workspace: Workspace | None,
    *,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trainer: str | None = None,
    trust: CodeTrust = TRUST_NONE,
) -> Session:
    """Load a dataset and make sure that results can be written, before any work starts.

    Args:
        dataset: Folder, name or id.
        workspace: Where results go; `./segwright-work` by default.
        environment: Variables that explicit file lists may name.
        trainer: Reference of the class that trains, `module:Class`; ours by default.
        trust: Which code the work folder's files may have imported.

    Raises:
        SegwrightError: the dataset is not usable or the workspace not writable.
    """
    place = workspace_or_default(workspace)
    loaded = load(place.resolve_dataset(dataset), environment=environment)
    place.require_writable()
    session = Session(
        workspace=place,
        dataset=loaded,
        stage_cache=StageCache(place.preprocessed_dataset(loaded.name)),
        raw_state=listing_digest(_raw_files(loaded)),
        environment=environment,
        trainer=trainer,
        trust=trust,
    )
    _require_own(session)
    return session


@contextmanager
def dataset_lock(session: Session, what: str) -> Iterator[None]:
    """Hold what is derived from a dataset before training, for the block; another process is waited for.

    Args:
        session: dataset and workspace.
        what: is done, for those who wait.

    Raises:
        WorkspaceError: the workspace belongs to another dataset of this name.
    """
    with locked(session.workspace.preprocessed_lock(session.name), f"{what} {session.name}"):
        sweep_leftovers(session.workspace.preprocessed_dataset(session.name), is_shared=True)
        _require_own(session)  # another process may have begun one of this name meanwhile
        if session.stage_cache.is_begun:
            record_owner(session)
        yield


def record_owner(session: Session) -> None:
    """Note that what the workspace has under the dataset's name is made from this dataset, as it is now."""
    recorded = session.stage_cache.raw
    if recorded is None or recorded.state != session.raw_state:
        session.stage_cache.record_raw(_identity(session))


def workspace_or_default(workspace: Workspace | None) -> Workspace:
    """Return the workspace, or the one below `./segwright-work`."""
    return Workspace.under(DEFAULT_WORK.absolute()) if workspace is None else workspace


def writing_problem(workspace: Workspace) -> Problem | None:
    """Return why results cannot be written, without making a folder."""
    for folder in (workspace.preprocessed, workspace.results):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = "no folder" if not existing.is_dir() else "not writable"
            return Problem(
                where=f"work folder {folder}", what=f"{existing} is {what}", remedy="choose another one with --work DIR"
            )
    return None


def _require_own(session: Session) -> None:
    """See that what the workspace has under the dataset's name was made from this dataset, as it was or is now.

    Raises:
        WorkspaceError: it was made from another one.
    """
    recorded = session.stage_cache.raw
    if recorded is None or recorded.state == session.raw_state:
        return
    folder = os.path.realpath(session.dataset.folder)
    if recorded.folder == folder:
        return
    now = _image_hashes(session, set(recorded.images))
    equal = [case for case, images in now.items() if images == recorded.images[case]]
    if now and 2 * len(equal) >= len(now):
        return
    preprocessed = session.workspace.preprocessed_dataset(session.name)
    raise WorkspaceError(
        f"{preprocessed}: belongs to {recorded.folder}, another dataset of the same name than {folder}; choose "
        f"another work folder with --work, rename one of the two datasets, or remove {preprocessed} and "
        f"{session.workspace.results / session.name} if the former is no longer needed"
    )


def _identity(session: Session) -> RawIdentity:
    names = session.dataset.identifiers
    chosen = {names[0], names[len(names) // 2], names[-1]}
    return RawIdentity(
        folder=os.path.realpath(session.dataset.folder),
        state=session.raw_state,
        images=_image_hashes(session, chosen),
    )


def _image_hashes(session: Session, names: Collection[str]) -> dict[str, str]:
    """Return the hash of the images of those of some cases that the dataset has."""
    return {
        case.identifier: content_hash([file.sha256 for file in identify(case.images, ())])
        for case in session.dataset.cases
        if case.identifier in names
    }


def _raw_files(dataset: Dataset) -> Iterator[Path]:
    yield dataset.folder / DATASET_JSON
    for case in dataset.cases:
        yield from case.images
        if case.label is not None:
            yield case.label
