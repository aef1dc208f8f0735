"""Predict the jobs of a queue: one thread for each device, with models that are loaded once."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path

from segwright.core.errors import OutOfMemoryError, SegwrightError
from segwright.core.files.json_documents import write_json
from segwright.core.process_tuning import release_freed_memory
from segwright.core.resources import resource_error
from segwright.deploy.serve.dicom_case import staged_images
from segwright.deploy.serve.jobs import INPUTS, OUTPUTS, VIEW_JSON, Failure, Job
from segwright.deploy.serve.models import DrawView, ServedModel
from segwright.deploy.serve.queue import JobEnded, JobQueue
from segwright.deploy.serve.refusals import refusal_of
from segwright.inference.window.tile_planes import TileCount

logger = getLogger(__name__)

_ALL = 1 << 40
"""Bytes that `release_freed_memory` is told of: more than any threshold."""


class Workers:
    """The threads that predict.

    Args:
        queue: of the jobs.
        models: by name, each with a predictor for every device.
        draw_view: makes what the page draws; None without a page.
    """

    def __init__(self, queue: JobQueue, models: Mapping[str, ServedModel], draw_view: DrawView | None) -> None:
        self._queue = queue
        self._models = models
        self._draw_view = draw_view
        num_devices = len(next(iter(models.values())).predictors)
        self._threads = [
            threading.Thread(target=self._work, args=(device,), name=f"segwright-worker-{device}")
            for device in range(num_devices)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def are_alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads to end after the queue was closed; whether they have ended."""
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, device: int) -> None:
        while (job := self._queue.take()) is not None:
            try:
                finished = self._predicted(job, device)
            except JobEnded:
                finished = job  # cancelled, and deleted by the queue; or stopped, and kept for the next server
                if self._queue.is_aborted:
                    return
            self._queue.finish(finished)
            release_freed_memory(_ALL)

    def _predicted(self, job: Job, device: int) -> Job:
        """Predict a job; return it as done, or as failed with the reason.

        Raises:
            JobEnded: it was cancelled, or the server ends at once.
        """
        try:
            finished = self._predict(job, device)
        except SegwrightError as error:
            failure = self._failure(error, job)
        except Exception as error:
            known = resource_error(error)
            if known is None:
                _log_bug(job, error)
            failure = self._failure(known, job) if known else Failure(what="internal error, see the server's log")
        else:
            logger.info("job %s: done", job.id)
            return finished
        logger.info("job %s: failed", job.id)
        self._queue.folders.wipe_outputs(job.id)
        return job.model_copy(update={"state": "failed", "failure": failure})

    def _predict(self, job: Job, device: int) -> Job:
        model = self._models[job.model]
        predictor = model.predictors[device]
        folder = self._queue.folders.folder(job.id)
        images = [folder / INPUTS / name for name in job.files]
        outputs = folder / OUTPUTS
        on_tiles, is_dicom = self._progress_of(job, model), images[0].is_dir()
        result: Path
        if is_dicom:
            kinds = () if job.output == "nifti" else (job.output,)
            predicted = predictor.predict_dicom(images[0], outputs, output_types=kinds, on_tiles=on_tiles)
            record, result = predicted.record, predicted.files[-1]
        else:
            [record] = predictor.predict_files(images, outputs, on_tiles=on_tiles)
            result = record.output
        if job.view and self._draw_view is not None:
            with staged_images(images[0], model, outputs) if is_dicom else nullcontext(images) as shown:
                write_json(outputs / VIEW_JSON, self._draw_view(model, shown, record.output), indent=0)
        return job.model_copy(
            update={
                "state": "done",
                "result": result.name,
                "warnings": tuple(self._without_names(job, warning) for warning in record.warnings),
                "expected_dice": record.expected_dice,
                "confidence": record.confidence,
            }
        )

    def _progress_of(self, job: Job, model: ServedModel) -> Callable[[TileCount], None]:
        """Return a function that reports the tiles of a job, and ends it when it was cancelled."""
        totals: list[int] = []

        def report(count: TileCount) -> None:
            if not totals or count.total > totals[-1]:  # the next network begins
                totals.append(count.total)
            before = totals[-2] if len(totals) > 1 else 0
            share = (count.tiles - before) / max(1, totals[-1] - before)
            self._queue.report(job.id, min(1.0, (len(totals) - 1 + share) / model.num_networks))

        return report

    def _failure(self, error: SegwrightError, job: Job) -> Failure:
        """Return why a job failed, for the client."""
        refusal = refusal_of(error, 422)
        remedy = "send a smaller image" if isinstance(error, OutOfMemoryError) else refusal.remedy
        return Failure(what=self._without_names(job, refusal.what), remedy=self._without_names(job, remedy))

    def _without_names(self, job: Job, text: str) -> str:
        """Return a message without our names of folders and files, which mean nothing to the client."""
        folder = self._queue.folders.folder(job.id)
        for own in (f"{folder / INPUTS}/", f"{folder / OUTPUTS}/", f"{folder}/", f"{job.id}: ", f"{job.id}_"):
            text = text.replace(own, "")
        return text


def _log_bug(job: Job, error: Exception) -> None:
    """Log where an unexpected error is from; not its message, which may hold what an image file says."""
    lines = "".join(traceback.format_tb(error.__traceback__))
    logger.error("job %s: unexpected %s\n%s", job.id, type(error).__name__, lines)
