"""The queue of a server: which jobs wait, run or are finished, kept on disk and safe to use from several threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from typing import Final

from segwright.core.errors import SegwrightError
from segwright.deploy.serve.jobs import Failure, Job, JobFolders
from segwright.deploy.serve.refusals import Refusal

logger = getLogger(__name__)

MAX_ATTEMPTS: Final = 3
"""Of one job; a case that ends the server each time, for instance by its memory, must not do so for ever."""
_FIRST_GUESS_S: Final = 20.0
"""Duration of a job, before one has ended."""
_MAX_RETRY_S: Final = 600


class JobEnded(BaseException):
    """Ends the prediction of a job that was cancelled, or of a server that ends at once; not an error of the case."""


class JobQueue:
    """All jobs of a server.

    Args:
        folders: where jobs are stored.
        size: jobs that may wait or be uploaded at the same time.
        workers: jobs that run at the same time.
        retention_s: seconds until a finished job is deleted.
    """

    def __init__(self, folders: JobFolders, *, size: int, workers: int, retention_s: float) -> None:
        self.folders = folders
        self._size = size
        self._workers = workers
        self._retention_s = retention_s
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[str] = deque()
        self._progress: dict[str, float] = {}
        self._uploads = 0
        self._last_s = _FIRST_GUESS_S
        self._change = threading.Condition()
        self.is_closed = False
        self.is_aborted = False

    def restore(self, models: frozenset[str]) -> None:
        """Take over the jobs that an earlier server left: finished ones are kept, all others wait again."""
        for stored in self.folders.stored():
            job = self._restored(stored, models)
            if job is None:
                self.folders.wipe(stored.id)
                continue
            self._jobs[job.id] = job
            if job.state == "queued":
                self.folders.wipe_outputs(job.id)
                self._waiting.append(job.id)
            if job != stored:
                self.folders.save(job)
        if self._jobs:
            logger.info("%d jobs of an earlier server: %d wait", len(self._jobs), len(self._waiting))

    def _restored(self, job: Job, models: frozenset[str]) -> Job | None:
        """Return a stored job as it continues; None if it is deleted."""
        if job.is_finished:
            return None if job.state == "cancelled" or self._is_old(job) else job
        if job.model not in models:
            failure = Failure(what=f"the server was started again without model '{job.model}'", remedy="choose another")
            return job.model_copy(update={"state": "failed", "finished": time.time(), "failure": failure})
        if job.attempts >= MAX_ATTEMPTS:
            what = f"the server ended {job.attempts} times while it predicted this case, perhaps without memory"
            failure = Failure(what=what, remedy="crop the image, or store it with a larger spacing")
            return job.model_copy(update={"state": "failed", "finished": time.time(), "failure": failure})
        return job.model_copy(update={"state": "queued", "started": None})

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place in the queue during an upload.

        Raises:
            Refusal: the queue is full (429), or the server is about to end (503).
        """
        with self._change:
            self.require_open()
            if len(self._waiting) + self._uploads >= self._size:
                wait = min(_MAX_RETRY_S, max(1, round(self._last_s / self._workers)))
                raise Refusal(
                    429,
                    f"the queue is full: {len(self._waiting)} jobs wait and {self._uploads} are being uploaded",
                    expected=f"at most {self._size}",
                    remedy=f"send the job again in {wait} s",
                    headers={"Retry-After": str(wait)},
                )
            self._uploads += 1
        try:
            yield
        finally:
            with self._change:
                self._uploads -= 1

    def add(self, job: Job) -> None:
        """Accept an uploaded job; it is on disk before this returns.

        Raises:
            Refusal: the server is about to end.
        """
        with self._change:
            self.require_open()
            self.folders.accept(job)
            self._jobs[job.id] = job
            self._waiting.append(job.id)
            self._change.notify_all()

    def get(self, job: str) -> Job:
        """Return a job.

        Raises:
            Refusal: there is none, or it was cancelled or deleted (404).
        """
        with self._change:
            found = self._jobs.get(job)
        if found is None or found.state == "cancelled" or self._is_old(found):
            raise Refusal(
                404,
                "there is no such job",
                expected=f"the id of a job that was not cancelled and ended at most {self._retention_s:.0f} s ago",
                remedy="send the images again",
            )
        return found

    def position(self, job: str) -> int | None:
        """Return the place of a job in the queue, from 1; None if it does not wait."""
        with self._change:
            return self._waiting.index(job) + 1 if job in self._waiting else None

    def progress(self, job: str) -> float:
        """Return which share of a running job's tiles are predicted, from 0 to 1."""
        return self._progress.get(job, 0.0)

    def cancel(self, job: str) -> None:
        """Cancel a job and delete its files; a running one ends after its current forward pass.

        Raises:
            Refusal: there is no such job.
        """
        found = self.get(job)
        with self._change:
            found = self._jobs.get(job, found)
            cancelled = found.model_copy(update={"state": "cancelled", "finished": time.time()})
            is_running = found.state == "running"
            if is_running:  # the worker still writes there; a restart must not run it again
                self.folders.save(cancelled)
                self._jobs[job] = cancelled
            else:
                self._forget(job)
        if is_running:
            self.folders.wipe_inputs(job)
        else:
            self.folders.wipe(job)
        logger.info("job %s: cancelled", job)

    def discard(self, job: str) -> None:
        """Cancel a job as `cancel` does, if it is still there."""
        with suppress(Refusal):
            self.cancel(job)

    def take(self) -> Job | None:
        """Wait for the next job and mark it as running; None when the queue is closed."""
        with self._change:
            while not self._waiting and not self.is_closed:
                self._change.wait()
            if self.is_closed:
                return None
            waiting = self._jobs[self._waiting.popleft()]
            update = {"state": "running", "started": time.time(), "attempts": waiting.attempts + 1}
            job = self._jobs[waiting.id] = waiting.model_copy(update=update)
            try:
                self.folders.save(job)
            except SegwrightError as error:  # a restart would only count one attempt less
                logger.warning("job %s: %s", job.id, error)
            return job

    def report(self, job: str, share: float) -> None:
        """Record the progress of a running job.

        Raises:
            JobEnded: it was cancelled, or the server ends at once.
        """
        found = self._jobs.get(job)
        if self.is_aborted or found is None or found.state == "cancelled":
            raise JobEnded
        self._progress[job] = share

    def finish(self, job: Job) -> None:
        """Store a job that is done or failed; one that was cancelled meanwhile is deleted."""
        with self._change:
            self._progress.pop(job.id, None)
            is_cancelled = self._jobs[job.id].state == "cancelled"
            if is_cancelled:
                self._forget(job.id)
            else:
                self._jobs[job.id] = self._saved(job.model_copy(update={"finished": time.time()}))
                self._last_s = time.time() - (job.started or time.time())
            self._change.notify_all()
        if is_cancelled:
            self.folders.wipe(job.id)
        else:
            self.folders.wipe_inputs(job.id)

    def wipe_old(self) -> None:
        """Delete the jobs that ended longer ago than results are kept."""
        with self._change:
            old = [job.id for job in self._jobs.values() if job.state != "cancelled" and self._is_old(job)]
            for job in old:
                self._forget(job)
        for job in old:
            self.folders.wipe(job)

    def close(self) -> None:
        """Accept no more jobs; running ones end, those that wait stay on disk for the next server."""
        with self._change:
            self.is_closed = True
            self._change.notify_all()

    def abort(self) -> None:
        """Close the queue, and end running jobs after their current forward pass; the next server repeats them."""
        self.is_aborted = True
        self.close()

    def _saved(self, job: Job) -> Job:
        """Write a finished job; a failed one is returned if that fails, since a restart would not find the result."""
        try:
            self.folders.save(job)
        except SegwrightError as error:
            logger.error("job %s: %s", job.id, error)
            what = "the server could not store the result; its disk may be full"
            return job.model_copy(update={"state": "failed", "failure": Failure(what=what, remedy="try again later")})
        return job

    def _forget(self, job: str) -> None:
        self._jobs.pop(job, None)
        if job in self._waiting:
            self._waiting.remove(job)

    def _is_old(self, job: Job) -> bool:
        return job.finished is not None and time.time() - job.finished > self._retention_s

    def require_open(self) -> None:
        """Raise a Refusal (503) if the queue is closed."""
        if self.is_closed:
            raise Refusal(503, "the server is about to end", remedy="send the job to the next server, or later")
