"""Open a dataset in a workspace, and check that the derived files there were made from it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

from segwright.core.errors import Problem, WorkspaceError
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.core.files.atomic_io import sweep_leftovers
from segwright.core.files.hashing import content_hash
from segwright.core.files.locks import locked
from segwright.data.crossval.resolving import AS_BEFORE, SplitOptions
from segwright.data.dataset import NO_ENVIRONMENT, Dataset, load
from segwright.data.stage_cache import RawIdentity, StageCache, hash_files, listing_digest
from segwright.workspace import DATASET_JSON, SPLITS_JSON, Workspace

if TYPE_CHECKING:
    from segwright.compat.nnunet.loading import LoadedTrainer

logger = getLogger(__name__)

DEFAULT_TRAINER = "Trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A loaded dataset with its workspace.

    `raw_digest` is the digest of the raw files, `environment` the variables that paths in file lists may contain,
    `trainer` the reference of the trainer class (`module:Class`, None for `Trainer`), `model_name` the first part of
    the name of model folders, `trust` the code that files of the work folder may import.
    """

    workspace: Workspace
    dataset: Dataset
    stage_cache: StageCache
    raw_digest: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    trainer: str | None = None
    model_name: str = DEFAULT_TRAINER
    trust: CodeTrust = TRUST_NONE
    nnunet_trainer: LoadedTrainer | None = None
    """The class of a file that subclasses nnU-Net's trainer, which trains instead."""
    split_options: SplitOptions = AS_BEFORE
    """How folds are made, as this call asks for it."""
    wait: bool = True
    """Whether to wait for other processes that make the same; otherwise `LockHeldError` is raised."""

    @property
    def trainer_name(self) -> str:
        """Name of the trainer class."""
        if self.nnunet_trainer is not None:
            return self.nnunet_trainer.class_name
        return trainer_name(self.trainer)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset.name

    @property
    def raw_splits(self) -> Path:
        """Path of the splits file in the raw dataset."""
        return self.dataset.folder / SPLITS_JSON


def trainer_name(trainer: str | None) -> str:
    """Return the name of a trainer class of a reference, None for `Trainer`."""
    return DEFAULT_TRAINER if trainer is None else trainer.rpartition(":")[2].rpartition(".")[2]


def open_session(
    dataset: str | Path | int,
    workspace: Workspace | None,
    *,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    trainer: str | None = None,
    model_name: str | None = None,
    trust: CodeTrust = TRUST_NONE,
    split_options: SplitOptions = AS_BEFORE,
    wait: bool = True,
) -> Session:
    """Load a dataset and check that results can be written, before any work starts.

    Args:
        dataset: Folder, name or id.
        workspace: Where results are written; `./segwright-work` by default.
        environment: Variables that paths in file lists may contain.
        trainer: Reference of the trainer class, `module:Class`; `Trainer` by default.
        model_name: First part of the name of model folders; the trainer class's by default.
        trust: Code that files of the work folder may import.
        split_options: How folds are made.
        wait: Wait for other processes that make the same.

    Raises:
        SegwrightError: the dataset is invalid or the workspace is not writable.
    """
    resolved_workspace = workspace_or_default(workspace)
    folder = resolved_workspace.resolve_dataset(dataset)
    if os.path.abspath(str(dataset)) != str(folder):
        logger.info("dataset %s is %s", dataset, folder)
    loaded = load(folder, environment=environment)
    resolved_workspace.require_writable()
    session = Session(
        workspace=resolved_workspace,
        dataset=loaded,
        stage_cache=StageCache(resolved_workspace.preprocessed_dataset(loaded.name)),
        raw_digest=listing_digest(_raw_files(loaded)),
        environment=environment,
        trainer=trainer,
        model_name=model_name or trainer_name(trainer),
        trust=trust,
        split_options=split_options,
        wait=wait,
    )
    _require_same_dataset(session)
    return session


@contextmanager
def dataset_lock(session: Session, what: str) -> Iterator[None]:
    """Hold the lock on a dataset's preprocessed files; wait while another process holds it.

    Args:
        session: dataset and workspace.
        what: description of the work, shown to waiting processes.

    Raises:
        LockHeldError: another process holds it, and the session does not wait.
        WorkspaceError: the workspace belongs to another dataset of this name.
    """
    with locked(session.workspace.preprocessed_lock(session.name), f"{what} {session.name}", wait=session.wait):
        sweep_leftovers(session.workspace.preprocessed_dataset(session.name), is_shared=True)
        _require_same_dataset(session)  # another process may have started with this name meanwhile
        if session.stage_cache.is_begun:
            record_owner(session)
        yield


def record_owner(session: Session) -> None:
    """Record that the derived files in the workspace belong to this dataset in its current state, and where it lies."""
    session.workspace.record_dataset(session.dataset.folder)
    recorded = session.stage_cache.raw
    if recorded is None or recorded.state != session.raw_digest:
        session.stage_cache.record_raw(_identity(session))


def workspace_or_default(workspace: Workspace | None) -> Workspace:
    """Return the workspace, or the one below `./segwright-work`."""
    return Workspace.default() if workspace is None else workspace


def writing_problem(workspace: Workspace) -> Problem | None:
    """Return why results cannot be written, or None if they can; no folder is created."""
    for folder in (workspace.preprocessed, workspace.results):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = "not a folder" if not existing.is_dir() else "not writable"
            return Problem(
                where=f"work folder {folder}", what=f"{existing} is {what}", remedy="choose another one with --work DIR"
            )
    return None


def _require_same_dataset(session: Session) -> None:
    """Check that the derived files were made from this dataset and not from another one with the same name.

    Raises:
        WorkspaceError: they were made from another dataset.
    """
    recorded = session.stage_cache.raw
    if recorded is None or recorded.state == session.raw_digest:
        return
    folder = os.path.realpath(session.dataset.folder)
    if recorded.folder == folder:
        return
    now = _image_hashes(session, set(recorded.images))
    equal = [case for case, images in now.items() if images == recorded.images[case]]
    if now and 2 * len(equal) >= len(now):  # the dataset was moved, and perhaps some of its images changed
        return
    preprocessed = session.workspace.preprocessed_dataset(session.name)
    raise WorkspaceError(
        f"{preprocessed}: was made from {recorded.folder}, not from {folder} of the same name; choose "
        f"another work folder with --work, rename one of the two datasets, or remove {preprocessed} and "
        f"{session.workspace.results / session.name} if the results of {recorded.folder} are no longer needed"
    )


def _identity(session: Session) -> RawIdentity:
    """Return what identifies the dataset if its folder is moved: image hashes of its first, middle and last case."""
    names = session.dataset.identifiers
    chosen = {names[0], names[len(names) // 2], names[-1]}
    return RawIdentity(
        folder=os.path.realpath(session.dataset.folder),
        state=session.raw_digest,
        images=_image_hashes(session, chosen),
    )


def _image_hashes(session: Session, names: Collection[str]) -> dict[str, str]:
    """Return the image hashes of the given cases that exist in the dataset."""
    return {
        case.identifier: content_hash([file.sha256 for file in hash_files(case.images, ())])
        for case in session.dataset.cases
        if case.identifier in names
    }


def _raw_files(dataset: Dataset) -> Iterator[Path]:
    yield dataset.folder / DATASET_JSON
    for case in dataset.cases:
        yield from case.images
        if case.label is not None:
            yield case.label


def trained_folds(session: Session, plans: str) -> list[str]:
    """Return the folds that were or are being trained with plans of this name."""
    files = sorted((session.workspace.results / session.name).glob("*__*__*/fold_*/checkpoint_*.safetensors"))
    folds = dict.fromkeys(file.parent for file in files)
    return [f"{fold.parent.name}/{fold.name}" for fold in folds if fold.parent.name.split("__")[-2] == plans]
