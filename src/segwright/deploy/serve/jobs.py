"""Jobs on disk: a folder for each with `job.json`, its inputs and its results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.files.json_documents import parse_document, write_checked_json

logger = getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
Output = Literal["nifti", "dicom-seg", "rtstruct"]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

JOB_JSON: Final = "job.json"
INPUTS: Final = "inputs"
OUTPUTS: Final = "outputs"
VIEW_JSON: Final = "view.json"
"""What the page draws of a finished job."""
_PRIVATE: Final = 0o700


class Failure(BaseModel):
    """Why a job failed.

    Attributes:
        what: what is wrong.
        remedy: what the client can do; empty if that is clear.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    remedy: str = ""


class Job(BaseModel):
    """`job.json`: all that is known about a job.

    Attributes:
        id: random, so that it cannot be guessed.
        model: name of the model that predicts it.
        state: queued, running, done, failed or cancelled.
        output: kind of the result.
        view: whether the page will draw the result.
        files: names of the input files in `INPUTS`, one for each channel in the model's order; or one folder.
        created: time of the upload, in seconds since 1970.
        started: time at which prediction began.
        finished: time at which it ended.
        attempts: how often prediction has begun.
        result: name of the result in `OUTPUTS`; empty before it is done.
        warnings: what is unusual about the image or the prediction.
        expected_dice: estimate from held-out cases; None for a model without one.
        confidence: mean Dice that the model's own probabilities predict; None without foreground.
        failure: why the job failed.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    id: JobId
    model: str
    state: State = "queued"
    output: Output = "nifti"
    view: bool = False
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    created: float
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    result: str = ""
    warnings: tuple[str, ...] = ()
    expected_dice: float | None = None
    confidence: float | None = None
    failure: Failure | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")


class JobFolders:
    """The folders of all jobs below one folder; only the owner may read them.

    Args:
        root: holds `jobs`, and `incoming` for uploads that are not complete.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._jobs = root / "jobs"
        self._incoming = root / "incoming"

    def prepare(self) -> None:
        """Make the folders, and delete uploads that were not complete when an earlier server ended.

        Raises:
            WorkspaceError: they cannot be made.
        """
        shutil.rmtree(self._incoming, ignore_errors=True)
        try:
            for folder in (self.root, self._jobs, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(_PRIVATE)
        except OSError as error:
            reason = error.strerror or error
            raise WorkspaceError(f"{self.root}: cannot be written to ({reason}); choose another folder") from error

    def folder(self, job: str) -> Path:
        """Return the folder of an accepted job."""
        return self._jobs / job

    def new_upload(self, job: str) -> Path:
        """Make and return the folder of a job that is being uploaded."""
        folder = self._incoming / job
        (folder / INPUTS).mkdir(parents=True, mode=_PRIVATE)
        return folder

    def accept(self, job: Job) -> None:
        """Make an upload a job that survives a restart."""
        upload = self._incoming / job.id
        _write(upload, job)
        os.replace(upload, self.folder(job.id))

    def save(self, job: Job) -> None:
        """Write `job.json`."""
        _write(self.folder(job.id), job)

    def wipe(self, job: str) -> None:
        """Delete everything of a job, or of an upload; at once, so that no part of it is found after a crash."""
        gone = self._incoming / f"{job}.deleted"
        with suppress(FileNotFoundError):
            os.replace(self.folder(job), gone)
        for folder in (gone, self._incoming / job):
            shutil.rmtree(folder, ignore_errors=True)

    def wipe_inputs(self, job: str) -> None:
        """Delete the images of a job."""
        shutil.rmtree(self.folder(job) / INPUTS, ignore_errors=True)

    def wipe_outputs(self, job: str) -> None:
        """Delete what an ended attempt wrote."""
        shutil.rmtree(self.folder(job) / OUTPUTS, ignore_errors=True)

    def stored(self) -> Iterator[Job]:
        """Yield the jobs of an earlier server, oldest first; folders without a readable `job.json` are deleted."""
        found = []
        for folder in self._jobs.iterdir():
            try:
                job = parse_document(Job, folder / JOB_JSON)
            except SegwrightError as error:
                logger.warning("%s; the job is deleted", error)
                self.wipe(folder.name)
            else:
                found.append(job)
        yield from sorted(found, key=lambda job: job.created)


def _write(folder: Path, job: Job) -> None:
    write_checked_json(folder / JOB_JSON, job.model_dump(mode="json"))
