"""Predict a folder of cases: reading, network and export overlap in threads; finished cases are kept on a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segwright
from segwright.core.documents import content_hash, read_json, write_json
from segwright.core.errors import ConfigError, ImageError, SegwrightError, WorkspaceError
from segwright.core.log import progress
from segwright.core.memory import peak_bytes
from segwright.core.parallel import fork_safe
from segwright.data.cases import Case
from segwright.data.dataset import list_cases
from segwright.data.images import Volume, hidden_nonfinite, read_images
from segwright.inference.awareness import say_warnings
from segwright.inference.export import save_labels
from segwright.inference.predictor import HOLD_BYTES, Predictor
from segwright.inference.sliding import TileCount
from segwright.inference.stitching import Planes
from segwright.inference.uncertainty import map_files
from segwright.inference.writers import Saving, open_maps, require_writable
from segwright.preprocessing.pipeline import Preprocessed
from segwright.workspace import DATASET_JSON, PLANS_JSON

logger = getLogger(__name__)

PREDICTION_JSON = "prediction.json"
SCHEMA_VERSION = 1

_ASSESSED = ("confidence", "expected_dice", "warnings")

_MAX_EXPORTS = 2
"""Cases that may wait for or be in export; with the one being read and the one in the network, four are in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """One predicted case: where it went, the wall time of each phase, how many tiles needed no pass, and how far it is
    to be trusted (see `awareness.Assessment`)."""

    case: str
    output: Path
    read_s: float = 0.0
    predict_s: float = 0.0
    export_s: float = 0.0
    tiles: int = 0
    tiles_reused: int = 0
    kept: bool = False
    confidence: float | None = None
    expected_dice: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One case to predict; `inputs` tells its files from changed ones."""

    case: Case
    output: Path
    saving: Saving | None
    probabilities: tuple[Path, ...]
    inputs: str
    maps: tuple[Path, ...] = ()
    temperature: float = 1.0


@fork_safe
def predict_files(
    predictor: Predictor,
    input_folder: Path,
    output_folder: Path,
    *,
    probabilities: bool | Saving = False,
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
        probabilities: also write `<case>.npz` and `<case>.provenance.json`, or what `Saving` tells.
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
        ProblemReport: there is no case, or cases lack channels; all of them are named before work starts.
        SegwrightError: anything else a user can mend, the case named.
    """
    description = predictor.description
    assert description is not None, "a predictor for files is made by load_predictor"
    require_apart(input_folder, output_folder)
    name = journal_name(part, parts)
    cases = list_cases(input_folder, description.file_ending, len(description.channel_names))[part::parts]
    journal = Journal.open(output_folder / name, identity(predictor), overwrite=overwrite)
    saving = Saving(kind="npz") if probabilities is True else probabilities or None
    require_writable(predictor.plan.image_reader_writer, saving, uncertainty=uncertainty)
    heat = predictor.awareness.temperature(calibrated=calibrated)
    jobs = [job_of(case, output_folder, predictor, saving, uncertainty=uncertainty, temperature=heat) for case in cases]
    if not journal.known and not overwrite:
        require_unused(jobs, output_folder)
    write_json(output_folder / DATASET_JSON, description.raw(), indent=4)
    predictor.plan.save(output_folder / PLANS_JSON)
    journal.save()
    todo = [job for job in jobs if not journal.is_finished(job)]
    if len(todo) < len(jobs):
        logger.info("%d of %d cases are predicted already and kept", len(jobs) - len(todo), len(jobs))
    workers = [predictor, *others][: max(len(todo), 1)]
    if len(workers) == 1:  # not in a thread of its own: large arrays cost page faults there, a tenth of the time
        done = {record.case: record for record in _run(predictor, todo, journal, hold_bytes)}
    else:
        done = _run_side_by_side(workers, todo, journal, hold_bytes)
    return [done.get(job.case.identifier) or journal.kept(job) for job in jobs]


def journal_name(part: int, parts: int) -> str:
    """Return the name of a part's journal; raises a ConfigError for a part that is none."""
    if not 0 <= part < parts:
        raise ConfigError(f"part {part} of {parts}: parts are counted from 0 to {parts - 1}")
    return PREDICTION_JSON if parts == 1 else f"prediction_part_{part}_of_{parts}.json"


def require_apart(input_folder: Path, output_folder: Path) -> None:
    """Refuse to write into the input folder."""
    source, target = input_folder.resolve(), output_folder.resolve()
    if target == source or source in target.parents:
        raise WorkspaceError(
            f"{output_folder}: the output folder is or lies in the input folder {input_folder}, "
            "which is never written to; choose another one"
        )


def require_unused(jobs: Sequence[Job], output_folder: Path) -> None:
    """Refuse to replace predictions that another model, or another program, has made."""
    taken = [job.output.name for job in jobs if job.output.exists()]
    if taken:
        raise WorkspaceError(
            f"{output_folder}: holds predictions of another model or other options ({taken[0]}"
            f"{f' and {len(taken) - 1} more' if len(taken) > 1 else ''}); choose another output folder or overwrite"
        )


def job_of(
    case: Case,
    output_folder: Path,
    predictor: Predictor,
    saving: Saving | None,
    *,
    uncertainty: bool = False,
    temperature: float = 1.0,
) -> Job:
    """Return what there is to do for a case."""
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.images]
    assert predictor.description is not None, "a predictor for files is made by load_predictor"
    return Job(
        case=case,
        output=output_folder / f"{case.identifier}{predictor.description.file_ending}",
        saving=saving,
        probabilities=() if saving is None else saving.files(output_folder, case.identifier, predictor.labels),
        inputs=content_hash([states, temperature] if saving and temperature != 1 else states),
        maps=map_files(output_folder, case.identifier) if uncertainty else (),
        temperature=temperature,
    )


def identity(predictor: Predictor) -> dict[str, Any]:
    """Return what decides the labels: predictions that share it are interchangeable."""
    window, steps = predictor.window, predictor.postprocessing.to_json()
    return {
        **predictor.origin,
        **({"postprocessing": steps} if steps else {}),
        "mirror_axes": list(window.mirror_axes),
        "step": window.step,
        "precision": window.precision,
        "device": window.device.type,
    }


class Journal:
    """The `prediction.json` of an output folder, rewritten after every case."""

    def __init__(self, path: Path, identity: dict[str, Any], cases: dict[str, Any], *, known: bool) -> None:
        self.path = path
        self.identity = identity
        self.cases = cases
        self.known = known
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any], *, overwrite: bool) -> Journal:
        """Go on with a journal if it was written with the same `identity`, else begin one."""
        known = False
        cases: dict[str, Any] = {}
        if path.is_file() and not overwrite:
            document = read_json(path)
            known = isinstance(document, dict) and document.get("model") == identity
            cases = dict(document.get("cases", {})) if known else {}
        return cls(path, identity, cases, known=known)

    def is_finished(self, job: Job) -> bool:
        """Whether the outputs of a case exist and were made from the input as it is now."""
        entry = self.cases.get(job.case.identifier)
        if entry is None or entry.get("inputs") != job.inputs:
            return False
        return all(path.is_file() for path in (job.output, *job.probabilities, *job.maps))

    def add(self, job: Job, record: CaseRecord) -> None:
        """Note a finished case."""
        values = {key: round(value, 3) for key, value in asdict(record).items() if key.endswith("_s")}
        values |= {key: asdict(record)[key] for key in ("tiles", "tiles_reused", *_ASSESSED)}
        with self._lock:
            self.cases[record.case] = {"inputs": job.inputs, "output": record.output.name, **values}
            self.save()

    def kept(self, job: Job) -> CaseRecord:
        """Return the record of a case that was finished before."""
        entry = self.cases.get(job.case.identifier, {})
        known = {key: entry[key] for key in _ASSESSED if key in entry}
        known["warnings"] = tuple(known.get("warnings", ()))
        return CaseRecord(case=job.case.identifier, output=job.output, kept=True, **known)

    def save(self) -> None:
        """Write the document."""
        peak = peak_bytes()
        versions = {"segwright": segwright.__version__, "torch": torch.__version__, "numpy": np.__version__}
        write_json(
            self.path,
            {
                "schema_version": SCHEMA_VERSION,
                "model": self.identity,
                "versions": versions,
                "peak_memory_mib": None if peak is None else round(peak / 2**20),
                "cases": dict(sorted(self.cases.items())),
            },
        )


def _run_side_by_side(
    workers: Sequence[Predictor], jobs: Sequence[Job], journal: Journal, hold_bytes: int
) -> dict[str, CaseRecord]:
    """Deal the jobs to the workers, each in a thread of its own."""
    with ThreadPoolExecutor(len(workers), "segwright-devices") as pool:
        runs = [
            pool.submit(lambda worker, share: [*_run(worker, share, journal, hold_bytes)], worker, share)
            for worker, share in ((worker, jobs[index :: len(workers)]) for index, worker in enumerate(workers))
        ]
        return {record.case: record for run in runs for record in run.result()}


def _run(predictor: Predictor, jobs: Sequence[Job], journal: Journal, hold_bytes: int) -> Iterator[CaseRecord]:
    """Predict the jobs in order; the next case is read and the last ones are exported meanwhile."""
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as exporting:
        exports: list[Future[CaseRecord]] = []
        upcoming = [reading.submit(_read, predictor, job) for job in jobs[:1]]
        try:
            for index, job in enumerate(progress(jobs, title="predicting" if jobs else "", total=len(jobs))):
                prepared, read_s, findings = upcoming.pop().result()
                upcoming = [reading.submit(_read, predictor, following) for following in jobs[index + 1 : index + 2]]
                start = time.perf_counter()
                count = TileCount()
                planes: Iterable[Planes] = predictor.planes(
                    prepared.image, count=count, spread=measures_spread(predictor, job)
                )
                if predictor.may_hold(prepared.image, hold_bytes):
                    with naming(job.case):
                        planes = list(planes)
                record = CaseRecord(
                    case=job.case.identifier,
                    output=job.output,
                    read_s=read_s,
                    predict_s=time.perf_counter() - start,
                    warnings=findings,
                )
                exports.append(exporting.submit(_export, predictor, job, planes, prepared, record, journal, count))
                if not isinstance(planes, list):
                    wait(exports[-1:])  # the network runs in the export
                # Or the finished case would be held until the next one is done.
                del planes, prepared
                if len(exports) >= _MAX_EXPORTS:
                    yield exports.pop(0).result()
            for export in exports:
                yield export.result()
        except BaseException:
            reading.shutdown(wait=True, cancel_futures=True)
            raise


def measures_spread(predictor: Predictor, job: Job) -> bool:
    """Whether the disagreement of folds and mirrored views is needed."""
    return bool(job.maps) or predictor.awareness.measures_disagreement(predictor.window.mirror_axes)


def _read(predictor: Predictor, job: Job) -> tuple[Preprocessed, float, tuple[str, ...]]:
    start = time.perf_counter()
    with naming(job.case):
        volume = read_volume(job.case, predictor.plan.image_reader_writer)
        findings = predictor.awareness.findings(volume)
        prepared = predictor.prepare(volume)
    return prepared, time.perf_counter() - start, findings


def read_volume(case: Case, reader: str) -> Volume:
    """Read the images of a case.

    Raises:
        ImageError: a file is unreadable or holds NaN or infinite values.
    """
    for file in case.images:
        if count := hidden_nonfinite(file, reader):
            raise ImageError(f"{file}: {count} voxels are NaN or infinite; check how the image was made")
    return read_images(case.images, reader)


def _export(
    predictor: Predictor,
    job: Job,
    planes: Iterable[Planes],
    prepared: Preprocessed,
    record: CaseRecord,
    journal: Journal,
    count: TileCount,
) -> CaseRecord:
    start = time.perf_counter()
    observer = predictor.observer(prepared)
    seen = observer.watch(planes, keep=bool(job.maps))
    with naming(job.case), ExitStack() as stack:
        way, sink, maps = predictor.way_back(prepared), None, None
        if job.saving is not None:
            folder, name, document = job.output.parent, job.case.identifier, {"model": journal.identity}
            sink = stack.enter_context(job.saving.open(folder, name, predictor.labels, way, document))
        if job.maps:
            maps = stack.enter_context(open_maps(job.maps, way))
        label_map = predictor.export(prepared, seen, sink=sink, maps=maps, temperature=job.temperature)
        save_labels(label_map, job.output, prepared.provenance, predictor.plan.image_reader_writer)
    found = predictor.awareness.assess(observer.observation(), record.warnings)
    done = replace(
        record,
        export_s=time.perf_counter() - start,
        tiles=count.tiles,
        tiles_reused=count.reused,
        **{key: getattr(found, key) for key in _ASSESSED},
    )
    say_warnings(done.case, done.warnings)
    journal.add(job, done)
    return done


@contextmanager
def naming(case: Case) -> Iterator[None]:
    """Put the case's name before every error."""
    try:
        yield
    except SegwrightError as error:
        if str(error).startswith(case.identifier):
            raise
        raise SegwrightError(f"{case.identifier}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{case.identifier}: {type(error).__name__}: {error}") from error
