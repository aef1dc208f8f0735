"""Predict the cases of a folder with an ensemble: one case at a time, its models' probabilities on disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from segwright.core.files.atomic_io import temporary_beside
from segwright.core.log import progress
from segwright.data.images.image_io import write_labels
from segwright.inference.ensemble import Ensemble, mean_labels, model_probabilities
from segwright.inference.export.writers import open_whole_maps
from segwright.inference.folder.failures import Failures, case_in_errors
from segwright.inference.folder.jobs import Job, read_volume
from segwright.inference.folder.log import PredictionLog
from segwright.inference.folder.run import ENSEMBLE_SUFFIX
from segwright.inference.prediction import CaseRecord
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.model import log_warnings
from segwright.inference.reliability.uncertainty import pooled_maps
from segwright.inference.window.tile_planes import TileCount


def predict_jobs(
    ensemble: Ensemble,
    jobs: Sequence[Job],
    log: PredictionLog,
    failures: Failures,
    *,
    on_tiles: Callable[[TileCount], None] | None = None,
) -> list[CaseRecord]:
    """Predict every job and return the records of those that did not fail; arguments as of `one_model`."""
    records = []
    for job in progress(jobs, title="predicting" if jobs else "", total=len(jobs)):
        with failures.collect(job.case):
            records.append(_predict(ensemble, job, log, TileCount(on_tiles=on_tiles)))
    return records


def _predict(ensemble: Ensemble, job: Job, log: PredictionLog, count: TileCount) -> CaseRecord:
    start = time.perf_counter()
    labels, reliability = ensemble.labels, ensemble.reliability
    with ExitStack() as stack:
        stack.enter_context(case_in_errors(job.case))
        scratch = temporary_beside(job.output.with_name(f"{job.case.identifier}.{ENSEMBLE_SUFFIX}"))
        scratch.mkdir()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        volume = read_volume(job.case, ensemble.reader)
        findings = reliability.findings(volume)
        read_s = time.perf_counter() - start
        disagreement = reliability.measures_disagreement(*(each.window.mirror_axes for each in ensemble.predictors))
        stored, provenance, timer, prepare_s = model_probabilities(
            ensemble.predictors, volume, scratch, disagreement=disagreement, maps=bool(job.maps), count=count
        )
        arrays = [each.array for each in stored]
        mean = None
        if job.probability_format is not None:
            folder, name, document = job.output.parent, job.case.identifier, {"model": log.model}
            mean = stack.enter_context(job.probability_format.open_whole(folder, name, labels, provenance, document))
        label_map = ensemble.postprocessing(mean_labels(arrays, labels, mean, temperature=job.temperature))
        if job.maps:
            target = stack.enter_context(open_whole_maps(job.maps, provenance))
            for plane in range(label_map.shape[0]):
                maps = pooled_maps(arrays, [each.disagreement for each in stored], labels, plane, plane + 1)
                target.put(plane, plane + 1, np.stack(maps))
        write_labels(label_map, job.output, volume.properties, ensemble.reader)
    assessment = reliability.assess(Observation.mean(each.observation for each in stored), findings)
    log_warnings(job.case.identifier, assessment.warnings)
    record = CaseRecord(
        case=job.case.identifier,
        output=job.output,
        read_s=read_s + prepare_s,
        predict_s=timer.seconds,
        export_s=time.perf_counter() - start - read_s - prepare_s - timer.seconds,
        tiles=timer.tiles.tiles,
        tiles_skipped=timer.tiles.reused,
        confidence=assessment.confidence,
        expected_dice=assessment.expected_dice,
        warnings=assessment.warnings,
    )
    log.add(job, record)
    return record
