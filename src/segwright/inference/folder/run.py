"""Open a run over a folder: check its input, lock the cases, find those that are not finished yet; join its parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import DatasetError
from segwright.core.files.atomic_io import require_writable_folder, sweep_leftovers
from segwright.core.files.json_documents import write_json
from segwright.data.description import DatasetDescription
from segwright.data.labels import Labels
from segwright.inference.export.writers import require_writable
from segwright.inference.folder.failures import Failures
from segwright.inference.folder.inputs import Images, find_cases, require_other_folder
from segwright.inference.folder.jobs import Job, PredictOptions, make_jobs
from segwright.inference.folder.joining import join_parts, warn_of_other_model
from segwright.inference.folder.log import PredictionLog
from segwright.inference.folder.log_files import PREDICTION_JSON, log_name
from segwright.inference.folder.run_locks import lock_logs, lock_part
from segwright.workspace import DATASET_JSON, PLANS_JSON

logger = getLogger(__name__)

ENSEMBLE_SUFFIX: Final = "ensemble"
"""Suffix of the temporary folder in which an ensemble keeps its models' probabilities of a case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRun:
    """A run whose output folder is locked.

    Attributes:
        jobs: of all cases, in order of their names.
        todo: those that have to be predicted.
        log: of the output folder.
        failures: collects the cases that fail; those whose files were refused are in it.
    """

    jobs: Sequence[Job]
    todo: Sequence[Job]
    log: PredictionLog
    failures: Failures


@contextmanager
def open_run(
    images: Images,
    output_folder: Path,
    options: PredictOptions,
    *,
    description: DatasetDescription,
    labels: Labels,
    reader: str,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    temperature: float,
) -> Iterator[FolderRun]:
    """Check everything that can be checked before prediction, lock the output folder, write the first documents.

    Args:
        images: see `predict_files`.
        output_folder: see `predict_files`.
        options: options of the run.
        description: the model's dataset.json.
        labels: of the model.
        reader: of images and label maps.
        model: identity of what predicts; see `Predictor.identity`.
        settings: options as the log records them.
        temperature: divides the logits before probabilities are written.

    Raises:
        ProblemReport: no case can be read.
        LockHeldError: another process predicts into the folder, and the options say not to wait.
        SegwrightError: input, output and options do not fit together.
    """
    require_other_folder(images, output_folder)
    require_writable(reader, options.probability_format, uncertainty=options.uncertainty)
    cases, refused = find_cases(images, description, reader)
    all_jobs = make_jobs(
        cases, output_folder, options, labels=labels, file_ending=description.file_ending, temperature=temperature
    )
    _require_distinct_files(all_jobs)
    jobs = all_jobs[options.part :: options.parts]
    others = [job for index, job in enumerate(all_jobs) if index % options.parts != options.part]
    for folder in sorted({output_folder, *(file.parent for job in jobs for file in job.files)}):
        require_writable_folder(folder)
    with lock_part(output_folder, options.part, options.parts, wait=options.wait):
        path = output_folder / log_name(options.part, options.parts)
        log = PredictionLog.open(path, model, settings, overwrite=options.overwrite)
        todo = list(jobs) if options.overwrite else log.unfinished(jobs, reader)
        if not options.overwrite:
            log.require_unused(todo)
            warn_of_other_model(log, others)
        for file in itertools.chain.from_iterable(map(log.damaged, todo)):
            logger.warning("%s: is damaged; predicted again", file)
        _sweep(log, jobs)
        write_json(output_folder / DATASET_JSON, description.raw(), indent=4)
        log.save()
        if len(todo) < len(jobs):
            logger.info("%d of %d cases are already predicted and kept", len(jobs) - len(todo), len(jobs))
        yield FolderRun(jobs=jobs, todo=todo, log=log, failures=Failures(refused))
        if options.parts > 1:
            with lock_logs(output_folder):
                join_parts(log, all_jobs, reader)


def _require_distinct_files(jobs: Sequence[Job]) -> None:
    """Refuse cases whose files would replace each other: `a` with a class `b_c`, and `a_b` with a class `c`."""
    owners: dict[Path, str] = {}
    for job in jobs:
        for file in job.files:
            other = owners.setdefault(file, job.case.identifier)
            if other != job.case.identifier:
                raise DatasetError(
                    f"{file}: would hold the results of case '{other}' and of case '{job.case.identifier}'; rename one"
                )


def _sweep(log: PredictionLog, jobs: Sequence[Job]) -> None:
    """Delete temporary files that a killed run left, of the files that only this run writes."""
    shared = {DATASET_JSON, PLANS_JSON} if log.path.name == PREDICTION_JSON else set()  # parts write them too
    sweep_leftovers(log.path.parent, {log.path.name, *shared})
    names: dict[Path, set[str]] = {}
    for job in jobs:
        case = job.case.identifier
        # The documents are written next to the label map for probabilities.
        more = (f"{case}.json", f"{case}.provenance.json", f"{case}.{ENSEMBLE_SUFFIX}")
        names.setdefault(job.output.parent, set()).update(more)
        for file in job.files:
            names.setdefault(file.parent, set()).update((file.name, f"{file.name}.b2nd"))
    for folder, of_folder in names.items():
        sweep_leftovers(folder, of_folder)
