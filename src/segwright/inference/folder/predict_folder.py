"""Predict a folder of cases: reading, network and export overlap in threads; finished cases are kept on a restart."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import (
    DatasetError,
    DiskError,
    OutOfMemoryError,
    Problem,
    ProblemReport,
    SegwrightError,
    WorkspaceError,
)
from segwright.core.files.atomic_io import content_hash, require_folder, sweep_leftovers, write_json
from segwright.core.files.locks import locked
from segwright.core.files.names import below
from segwright.core.log import progress
from segwright.core.parallel import fork_safe
from segwright.core.process_tuning import release_freed_memory
from segwright.core.resources import resource_error
from segwright.data.cases import Case
from segwright.data.dataset import usable_cases
from segwright.data.images.image_io import Volume, read_images
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.labels import LabelMap, save_labels
from segwright.inference.export.writers import ProbabilityFormat, open_maps, require_writable
from segwright.inference.folder.log import (
    ASSESSED,
    PREDICTION_JSON,
    CaseRecord,
    Job,
    PredictionLog,
    PredictOptions,
    Timer,
    identity,
)
from segwright.inference.precision import used_precision
from segwright.inference.predictor import HOLD_BYTES, Predictor
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.model import ReliabilityModel, log_warnings
from segwright.inference.reliability.uncertainty import map_files
from segwright.inference.window.stitching import Planes
from segwright.preprocessing.pipeline import PredictionInput
from segwright.workspace import DATASET_JSON, LOCK, PLANS_JSON

logger = getLogger(__name__)

SCRATCH: Final = "ensemble"
"""Ending of the folder in which the members of an ensemble keep a case meanwhile."""

_MAX_EXPORTS = 2
"""Cases that may wait for or be in export; with the one being read and the one in the network, four are in memory."""


@fork_safe
def predict_files(
    predictor: Predictor,
    input_folder: Path,
    output_folder: Path,
    *,
    probabilities: bool | ProbabilityFormat = False,
    uncertainty: bool = False,
    calibrated: bool = False,
    overwrite: bool = False,
    part: int = 0,
    parts: int = 1,
    others: Sequence[Predictor] = (),
    hold_bytes: int = HOLD_BYTES,
) -> list[CaseRecord]:
    """Predict every case of a folder and write `<case><ending>` for each.

    The output folder also gets `dataset.json`, `plans.json` (as with nnU-Net) and `prediction.json`: the model, the
    options and the record of each case. Started again, it predicts only what is missing or whose input changed.

    Args:
        predictor: made by `load_predictor`, so that it knows its dataset.json.
        input_folder: `<case>_0000<ending>` and so on; never written to.
        output_folder: another folder.
        probabilities: also write `<case>.npz` and `<case>.provenance.json`, or what `ProbabilityFormat` tells.
        uncertainty: also write the maps of `uncertainty.map_files`.
        calibrated: write probabilities with the model's temperature.
        overwrite: predict everything anew, also over predictions of another model.
        part: predict every `parts`-th case, beginning with this one (from 0); for several machines.
        parts: into how many parts the cases are dealt.
        others: the same model on other devices, which take cases too.
        hold_bytes: size of logits above which a case is exported while it is predicted.

    Returns:
        One record for each case, in order of the case names.

    Raises:
        ProblemReport: there is no case, or cases lack channels: all of them are named before work starts. Or cases
            cannot be read or predicted: they are named after all others are done.
        SegwrightError: anything else a user can fix.
    """
    saving = ProbabilityFormat(kind="npz") if probabilities is True else probabilities or None
    asked = PredictOptions(
        saving=saving, uncertainty=uncertainty, calibrated=calibrated, overwrite=overwrite, part=part, parts=parts
    )
    with ExitStack() as held:
        log, jobs, todo, failures = begin(
            [predictor],
            input_folder,
            output_folder,
            asked,
            model=identity(predictor),
            reliability=predictor.reliability,
            workers=[predictor, *others],
            held=held,
        )
        predictor.plan.save(output_folder / PLANS_JSON)
        workers = [predictor, *others][: max(len(todo), 1)]
        if len(workers) == 1:  # not in a thread of its own: large arrays cost page faults there, a tenth of the time
            done = {record.case: record for record in _run(predictor, todo, log, hold_bytes, failures)}
        else:
            done = _run_side_by_side(workers, todo, log, hold_bytes, failures)
    failures.require_none(len(jobs))
    return [done.get(job.case.identifier) or log.kept(job) for job in jobs]


def begin(
    members: Sequence[Predictor],
    input_folder: Path,
    output_folder: Path,
    asked: PredictOptions,
    *,
    model: dict[str, Any],
    reliability: ReliabilityModel,
    workers: Sequence[Predictor],
    held: ExitStack,
) -> tuple[PredictionLog, list[Job], list[Job], Failures]:
    """Check all that can be known beforehand, then write the first documents.

    Returns log, jobs, those of them to do, and what takes cases that fail; it has those whose files are not there.

    Args:
        members: the models that are averaged.
        input_folder: as of `predict_files`.
        output_folder: as of `predict_files`.
        asked: options of the run.
        model: identity of what predicts.
        reliability: what it knows of its limits.
        workers: predictors on the devices that take part.
        held: gets the lock of the output folder; parts of the cases have a lock each.
    """
    first = members[0]
    description = first.description
    assert description is not None, "a predictor for files is made by load_predictor"
    for each in (*members, *workers):
        used_precision(each.window.device, each.window.precision)  # or raise
    require_apart(input_folder, output_folder)
    require_writable(first.reader, asked.saving, uncertainty=asked.uncertainty)
    heat = reliability.temperature(calibrated=asked.calibrated)
    options = asked.options(members, [each.window.device for each in workers])
    cases, refused = usable_cases(input_folder, description.file_ending, len(description.channel_names))
    jobs = [job_of(case, output_folder, first, asked, temperature=heat) for case in cases[asked.part :: asked.parts]]
    _require_apart_files(jobs)
    for folder in sorted({output_folder, *(file.parent for job in jobs for file in job.files)}):
        require_folder(folder)
    held.enter_context(locked(below(output_folder, f".{asked.journal_name}{LOCK}"), f"predicting into {output_folder}"))
    log = PredictionLog.open(output_folder / asked.journal_name, model, options, overwrite=asked.overwrite)
    todo = list(jobs) if asked.overwrite else log.left_of(jobs, first.reader)
    if not asked.overwrite:
        log.require_unused(todo)
    _sweep(log, jobs)
    write_json(output_folder / DATASET_JSON, description.raw(), indent=4)
    log.save()
    if len(todo) < len(jobs):
        logger.info("%d of %d cases are predicted already and kept", len(jobs) - len(todo), len(jobs))
    return log, jobs, todo, Failures(refused)


def _require_apart_files(jobs: Sequence[Job]) -> None:
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
    """Delete what a killed run left half-written of the files that this run alone writes."""
    shared = {DATASET_JSON, PLANS_JSON} if log.path.name == PREDICTION_JSON else set()  # parts write them too
    sweep_leftovers(log.path.parent, {log.path.name, *shared})
    names: dict[Path, set[str]] = {}
    for job in jobs:
        case = job.case.identifier
        more = (f"{case}.json", f"{case}.provenance.json", f"{case}.{SCRATCH}")  # beside label maps, probabilities
        names.setdefault(job.output.parent, set()).update(more)
        for file in job.files:
            names.setdefault(file.parent, set()).update((file.name, f"{file.name}.b2nd"))
    for folder, found in names.items():
        sweep_leftovers(folder, found)


def require_apart(input_folder: Path, output_folder: Path) -> None:
    """Refuse to write into the input folder."""
    source, target = input_folder.resolve(), output_folder.resolve()
    if target == source or source in target.parents:
        raise WorkspaceError(
            f"{output_folder}: the output folder is or lies in the input folder {input_folder}, "
            "which is never written to; choose another one"
        )


def job_of(
    case: Case, output_folder: Path, predictor: Predictor, asked: PredictOptions, *, temperature: float = 1.0
) -> Job:
    """Return what there is to do for a case."""
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.images]
    assert predictor.description is not None, "a predictor for files is made by load_predictor"
    saving = asked.saving
    return Job(
        case=case,
        output=below(output_folder, f"{case.identifier}{predictor.description.file_ending}"),
        saving=saving,
        probabilities=() if saving is None else saving.files(output_folder, case.identifier, predictor.labels),
        inputs=content_hash([states, temperature] if saving and temperature != 1 else states),
        maps=map_files(output_folder, case.identifier) if asked.uncertainty else (),
        temperature=temperature,
    )


def _run_side_by_side(
    workers: Sequence[Predictor], jobs: Sequence[Job], log: PredictionLog, hold_bytes: int, failures: Failures
) -> dict[str, CaseRecord]:
    """Deal the jobs to the workers, each in a thread of its own."""
    with ThreadPoolExecutor(len(workers), "segwright-devices") as pool:
        runs = [
            pool.submit(lambda worker, share: [*_run(worker, share, log, hold_bytes, failures)], worker, share)
            for worker, share in ((worker, jobs[index :: len(workers)]) for index, worker in enumerate(workers))
        ]
        return {record.case: record for run in runs for record in run.result()}


def _run(
    predictor: Predictor, jobs: Sequence[Job], log: PredictionLog, hold_bytes: int, failures: Failures
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
                    prepared, read_s, findings = current.result()
                    timer = Timer()
                    planes: Iterable[Planes] = timer.watch(
                        predictor.planes(prepared.image, count=timer.tiles, spread=measures_spread(predictor, job))
                    )
                    record = CaseRecord(case=job.case.identifier, output=job.output, read_s=read_s, warnings=findings)
                    if predictor.may_hold(prepared.image, hold_bytes):
                        with naming(job.case):
                            planes = list(planes)
                        arguments = (predictor, job, planes, prepared, record, log, timer)
                        exports.append((job.case, exporting.submit(_export, *arguments)))
                        del arguments
                    else:  # decided as it is predicted; in this thread, where the network is fastest
                        decided = _decide(predictor, job, planes, prepared, log, timer)
                        saved = exporting.submit(_write, predictor, job, decided, record, log, timer)
                        exports.append((job.case, saved))
                        del decided
                # Or the finished case would be held until the next one is done.
                current = planes = prepared = None  # type: ignore[assignment]
                if len(exports) >= _MAX_EXPORTS:
                    yield from failures.result(*exports.pop(0))
            for export in exports:
                yield from failures.result(*export)
        except BaseException:
            reading.shutdown(wait=True, cancel_futures=True)
            raise


class Failures:
    """Cases that cannot be read or predicted: noted while the others are done, and told together at the end."""

    def __init__(self, problems: Sequence[Problem] = ()) -> None:
        self._problems = list(problems)
        self._num_refused = len({problem.case for problem in problems})
        for problem in problems:
            logger.warning("%s; going on with the other cases", problem)

    @contextmanager
    def collect(self, case: Case) -> Iterator[None]:
        """Note what is wrong with a case; where the disk or the output folder is to blame, the error passes."""
        try:
            yield
        except WorkspaceError:
            raise
        except SegwrightError as error:
            what = str(error).removeprefix(f"{case.identifier}: ")
            self._problems.append(
                Problem(where=case.identifier, what=what, case=case.identifier)
            )  # its text alone: it may hold arrays
            logger.warning("%s: not predicted (%s); going on with the others", case.identifier, what)

    def result(self, case: Case, export: Future[CaseRecord]) -> list[CaseRecord]:
        """Return the record of a finished case, none of one that failed."""
        with self.collect(case):
            return [export.result()]
        return []

    def require_none(self, num_cases: int) -> None:
        """Raise a ProblemReport where there are some."""
        if not self._problems:
            return
        problems = sorted(self._problems, key=lambda problem: problem.where)
        if num_cases + self._num_refused > 1:
            failed = len({problem.case for problem in problems})
            logger.warning("%d of %d cases are not predicted", failed, num_cases + self._num_refused)
        raise ProblemReport(problems)


def measures_spread(predictor: Predictor, job: Job) -> bool:
    """Whether the disagreement of folds and mirrored views is needed."""
    return bool(job.maps) or predictor.reliability.measures_disagreement(predictor.window.mirror_axes)


def _read(predictor: Predictor, job: Job) -> tuple[PredictionInput, float, tuple[str, ...]]:
    start = time.perf_counter()
    with naming(job.case):
        volume = read_volume(job.case, predictor.reader)
        findings = predictor.reliability.findings(volume)
        prepared = predictor.prepare(volume)
    freed = volume.array.nbytes
    del volume
    release_freed_memory(freed)  # where a resampled copy is predicted, the image itself
    return prepared, time.perf_counter() - start, findings


def read_volume(case: Case, reader: str) -> Volume:
    """Read the images of a case.

    Raises:
        ImageError: a file is unreadable or holds values that no image has.
    """
    volume = read_images(case.images, reader, find_hidden=True)
    release_freed_memory(volume.array.nbytes)  # about as much was needed beside it
    return volume


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """A case on its own grid, its probabilities and maps written, its label map not yet."""

    label_map: LabelMap
    provenance: Provenance
    observation: Observation
    seconds: float
    """Without those of the network."""


def _export(
    predictor: Predictor,
    job: Job,
    planes: Iterable[Planes],
    prepared: PredictionInput,
    record: CaseRecord,
    log: PredictionLog,
    timer: Timer,
) -> CaseRecord:
    decided = _decide(predictor, job, planes, prepared, log, timer)
    return _write(predictor, job, decided, record, log, timer)


def _decide(
    predictor: Predictor,
    job: Job,
    planes: Iterable[Planes],
    prepared: PredictionInput,
    log: PredictionLog,
    timer: Timer,
) -> _Decided:
    start, before = time.perf_counter(), timer.seconds
    observer = predictor.observer(prepared)
    seen = observer.watch(planes, keep=bool(job.maps))
    with naming(job.case), ExitStack() as stack:
        inverse, sink, maps = predictor.inverse_resampling(prepared), None, None
        if job.saving is not None:
            folder, name, document = job.output.parent, job.case.identifier, {"model": log.identity}
            sink = stack.enter_context(job.saving.open(folder, name, predictor.labels, inverse, document))
        if job.maps:
            maps = stack.enter_context(open_maps(job.maps, inverse))
        label_map = predictor.export(prepared, seen, sink=sink, maps=maps, temperature=job.temperature)
    return _Decided(
        label_map=label_map,
        provenance=prepared.provenance,
        observation=observer.observation(),
        seconds=time.perf_counter() - start - (timer.seconds - before),
    )


def _write(
    predictor: Predictor, job: Job, decided: _Decided, record: CaseRecord, log: PredictionLog, timer: Timer
) -> CaseRecord:
    start = time.perf_counter()
    with naming(job.case):
        save_labels(decided.label_map, job.output, decided.provenance, predictor.reader)
    found = predictor.reliability.assess(decided.observation, record.warnings)
    done = replace(
        record,
        predict_s=timer.seconds,
        export_s=decided.seconds + time.perf_counter() - start,
        tiles=timer.tiles.tiles,
        tiles_skipped=timer.tiles.reused,
        **{key: getattr(found, key) for key in ASSESSED},
    )
    log_warnings(done.case, done.warnings)
    log.add(job, done)
    return done


@contextmanager
def naming(case: Case) -> Iterator[None]:
    """Put the case's name before every error."""
    try:
        yield
    except SegwrightError as error:
        if str(error).startswith(case.identifier):
            raise
        kind = type(error) if isinstance(error, DiskError | OutOfMemoryError) else SegwrightError
        raise kind(f"{case.identifier}: {error}") from error
    except Exception as error:
        if found := resource_error(error):
            raise type(found)(f"{case.identifier}: {found}") from error
        raise RuntimeError(f"{case.identifier}: {type(error).__name__}: {error}") from error
