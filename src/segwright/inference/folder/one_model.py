"""Predict the cases of a folder with one model: reading, network and export overlap in threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from segwright.core.log import progress
from segwright.core.process_tuning import release_freed_memory
from segwright.data.cases import Case
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.background_export import MAX_EXPORTS, submit_export
from segwright.inference.case_predictor import CasePredictor
from segwright.inference.export.labels import LabelMap, save_labels
from segwright.inference.export.writers import open_maps
from segwright.inference.folder.failures import Failures, case_in_errors
from segwright.inference.folder.jobs import Job, read_volume
from segwright.inference.folder.log import PredictionLog
from segwright.inference.prediction import CaseRecord
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.model import log_warnings
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tile_planes import TileCount
from segwright.inference.window.timer import Timer
from segwright.preprocessing.pipeline import PredictionInput


def predict_jobs(
    predictors: Sequence[CasePredictor],
    jobs: Sequence[Job],
    log: PredictionLog,
    failures: Failures,
    *,
    hold_bytes: int,
    on_tiles: Callable[[TileCount], None] | None = None,
) -> list[CaseRecord]:
    """Predict every job and return the records of those that did not fail.

    Args:
        predictors: one model on one or several devices, which share the jobs.
        jobs: cases to predict.
        log: gets a record of each.
        failures: collects the cases that fail.
        hold_bytes: size of logits above which a case is exported while it is predicted.
        on_tiles: is called after each forward pass, in the thread that predicts.
    """
    predictors = predictors[: max(len(jobs), 1)]
    if len(predictors) == 1:  # not in a thread of its own: large arrays cost page faults there, a tenth of the time
        return list(_predict(predictors[0], jobs, log, failures, hold_bytes, on_tiles))
    with ThreadPoolExecutor(len(predictors), "segwright-devices") as pool:
        runs = [
            pool.submit(
                lambda *arguments: list(_predict(*arguments)), predictor, share, log, failures, hold_bytes, on_tiles
            )
            for predictor, share in (
                (predictor, jobs[index :: len(predictors)]) for index, predictor in enumerate(predictors)
            )
        ]
        return [record for run in runs for record in run.result()]


def _predict(
    predictor: CasePredictor,
    jobs: Sequence[Job],
    log: PredictionLog,
    failures: Failures,
    hold_bytes: int,
    on_tiles: Callable[[TileCount], None] | None,
) -> Iterator[CaseRecord]:
    """Predict the jobs in order; the next case is read and the last ones are exported meanwhile."""
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as exporting:
        exports: list[tuple[Case, Future[CaseRecord]]] = []
        upcoming = [reading.submit(_read, predictor, job) for job in jobs[:1]]
        try:
            for index, job in enumerate(progress(jobs, title="predicting" if jobs else "", total=len(jobs))):
                current = upcoming.pop()
                upcoming = [reading.submit(_read, predictor, following) for following in jobs[index + 1 : index + 2]]
                with failures.collect(job.case):
                    read = current.result()
                    timer = Timer(tiles=TileCount(on_tiles=on_tiles))
                    exports.append((job.case, _submit(exporting, predictor, job, read, log, timer, hold_bytes)))
                current = read = None  # type: ignore[assignment]  # or the case is held until the next one is done
                if len(exports) >= MAX_EXPORTS:
                    yield from failures.result(*exports.pop(0))
            for export in exports:
                yield from failures.result(*export)
        except BaseException:
            reading.shutdown(wait=True, cancel_futures=True)
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadCase:
    """A case on the network's grid, how long reading took, and what is unusual about its image."""

    prepared: PredictionInput
    seconds: float
    findings: tuple[str, ...]


def _read(predictor: CasePredictor, job: Job) -> _ReadCase:
    start = time.perf_counter()
    with case_in_errors(job.case):
        volume = read_volume(job.case, predictor.reader)
        findings = predictor.reliability.findings(volume)
        prepared = predictor.prepare(volume)
    freed = volume.array.nbytes
    del volume
    release_freed_memory(freed)  # where a resampled copy is predicted, the image itself
    return _ReadCase(prepared=prepared, seconds=time.perf_counter() - start, findings=findings)


def _submit(
    pool: ThreadPoolExecutor,
    predictor: CasePredictor,
    job: Job,
    read: _ReadCase,
    log: PredictionLog,
    timer: Timer,
    hold_bytes: int,
) -> Future[CaseRecord]:
    """Predict a case and submit its export."""
    measures_disagreement = bool(job.maps) or predictor.reliability.measures_disagreement(predictor.window.mirror_axes)
    planes = timer.watch(predictor.planes(read.prepared.image, count=timer.tiles, disagreement=measures_disagreement))
    record = CaseRecord(case=job.case.identifier, output=job.output, read_s=read.seconds, warnings=read.findings)
    with case_in_errors(job.case):
        return submit_export(
            pool,
            planes,
            partial(_decide, predictor, job, read.prepared, log, timer),
            partial(_write, predictor, job, record, log, timer),
            hold=predictor.may_hold(read.prepared.image, hold_bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """A case on its own grid; its probabilities and maps are written, its label map is not."""

    label_map: LabelMap
    provenance: Provenance
    observation: Observation
    seconds: float
    """Without those of the network."""


def _decide(
    predictor: CasePredictor,
    job: Job,
    prepared: PredictionInput,
    log: PredictionLog,
    timer: Timer,
    planes: Iterable[Planes],
) -> _Decided:
    """Decide the labels of a case; write probabilities and maps on the way."""
    start, before = time.perf_counter(), timer.seconds
    observer = predictor.observer(prepared)
    observed = observer.watch(planes, keep=bool(job.maps))
    with case_in_errors(job.case), ExitStack() as stack:
        inverse, writer, maps = predictor.inverse_resampling(prepared), None, None
        if job.probability_format is not None:
            folder, name, document = job.output.parent, job.case.identifier, {"model": log.model}
            writer = stack.enter_context(job.probability_format.open(folder, name, predictor.labels, inverse, document))
        if job.maps:
            maps = stack.enter_context(open_maps(job.maps, inverse))
        label_map = predictor.export(prepared, observed, writer=writer, maps=maps, temperature=job.temperature)
    return _Decided(
        label_map=label_map,
        provenance=prepared.provenance,
        observation=observer.observation(),
        seconds=time.perf_counter() - start - (timer.seconds - before),
    )


def _write(
    predictor: CasePredictor, job: Job, record: CaseRecord, log: PredictionLog, timer: Timer, decided: _Decided
) -> CaseRecord:
    """Write the label map of a case, assess the prediction and log it."""
    start = time.perf_counter()
    with case_in_errors(job.case):
        save_labels(decided.label_map, job.output, decided.provenance, predictor.reader)
    assessment = predictor.reliability.assess(decided.observation, record.warnings)
    done = replace(
        record,
        predict_s=timer.seconds,
        export_s=decided.seconds + time.perf_counter() - start,
        tiles=timer.tiles.tiles,
        tiles_skipped=timer.tiles.reused,
        confidence=assessment.confidence,
        expected_dice=assessment.expected_dice,
        warnings=assessment.warnings,
    )
    log_warnings(done.case, done.warnings)
    log.add(job, done)
    return done
