"""What was predicted, with what, and how long it took: `prediction.json`, rewritten after every case."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import segwright
from segwright.core.errors import ConfigError, SegwrightError, WorkspaceError
from segwright.core.files.atomic_io import file_crc, read_checked_json, write_checked_json
from segwright.core.memory import peak_bytes
from segwright.data.cases import Case
from segwright.data.images.image_io import read_label
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.predictor import Predictor
from segwright.inference.window.sliding import TileCount
from segwright.inference.window.stitching import Planes

logger = getLogger(__name__)

PREDICTION_JSON: Final = "prediction.json"
SCHEMA_VERSION: Final = 1
ASSESSED: Final = ("confidence", "expected_dice", "warnings")

_REMEDY = "remove the file and its label maps, or predict them again with --overwrite"
_JOURNALS = re.compile(r"prediction(_part_\d+_of_\d+)?\.json")

_TOLD_AT_ONCE: Final = 2
"""What the state of a file begins with: size and time, for which it is not read."""

Entries = dict[str, dict[str, Any]]
"""What a log says of each case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """One predicted case: where it went, the wall time of each phase, how many tiles needed no pass, and how far it is
    to be trusted (see `reliability.Assessment`)."""

    case: str
    output: Path
    read_s: float = 0.0
    predict_s: float = 0.0
    export_s: float = 0.0
    tiles: int = 0
    tiles_skipped: int = 0
    kept: bool = False
    confidence: float | None = None
    expected_dice: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One case to predict; `inputs` tells its files from changed ones."""

    case: Case
    output: Path
    saving: ProbabilityFormat | None
    probabilities: tuple[Path, ...]
    inputs: str
    maps: tuple[Path, ...] = ()
    temperature: float = 1.0

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is written for the case."""
        return (self.output, *self.probabilities, *self.maps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """What a run over a folder is asked for, beside the labels; see `files.predict_files`."""

    saving: ProbabilityFormat | None = None
    uncertainty: bool = False
    calibrated: bool = False
    overwrite: bool = False
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts:
            more = "; tell with --parts N into how many the cases are dealt" if self.parts == 1 else ""
            raise ConfigError(f"part {self.part} of {self.parts}: parts are counted from 0 to {self.parts - 1}{more}")

    @property
    def journal_name(self) -> str:
        """Name of the log, which every part has of its own."""
        return PREDICTION_JSON if self.parts == 1 else f"prediction_part_{self.part}_of_{self.parts}.json"

    def options(self, members: Sequence[Predictor], devices: Sequence[torch.device]) -> dict[str, Any]:
        """Return what the log says of the run; `members` are the models that are averaged."""
        first = members[0]
        folds = [each.origin.get("folds") for each in members]
        probabilities = None
        if self.saving is not None:
            names = [first.labels.names[head] for head in self.saving.heads(first.labels)]
            probabilities = {"form": self.saving.kind, "classes": names}
        return {
            "folds": folds[0] if len(folds) == 1 else folds,
            "mirroring": any(each.window.mirror_axes for each in members),
            "exact": not first.window.reuse,
            "precision": first.window.used_precision,
            "devices": [str(device) for device in devices],
            "probabilities": probabilities,
            "uncertainty": self.uncertainty,
            "calibrated": self.calibrated,
            "overwrite": self.overwrite,
            "part": self.part,
            "parts": self.parts,
        }


@dataclass(slots=True)
class Timer:
    """Counts the tiles of a case and the time in which they are predicted, wherever that happens."""

    tiles: TileCount = field(default_factory=TileCount)
    seconds: float = 0.0

    def watch(self, planes: Iterable[Planes]) -> Iterator[Planes]:
        """Pass planes on; the time until each is there counts."""
        waiting = iter(planes)
        while True:
            start = time.perf_counter()
            part = next(waiting, None)
            self.seconds += time.perf_counter() - start
            if part is None:
                return
            yield part
            del part  # or its memory would be held during the next pass


def identity(predictor: Predictor) -> dict[str, Any]:
    """Return what decides the labels: predictions that share it are interchangeable."""
    window, steps = predictor.window, predictor.postprocessing.to_json()
    return {
        **predictor.origin,
        **({"postprocessing": steps} if steps else {}),
        "mirror_axes": list(window.mirror_axes),
        "step": window.step,
        "precision": window.used_precision,
        "device": window.device.type,
    }


class PredictionLog:
    """The log of a run.

    Args:
        path: of its document.
        identity: of the model.
        options: of the run.
        cases: what this run's document says already.
        same_model: what the documents of other partitions of the same model say.
        other_models: what documents of other models say.
        is_known: there is a document of this model.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        cases: Entries,
        same_model: Sequence[Entries] = (),
        other_models: Sequence[Entries] = (),
        is_known: bool = False,
    ) -> None:
        self.path = path
        self.identity = identity
        self.options = options
        self.cases = cases
        self._same_model = same_model
        self._other_models = other_models
        self._is_known = is_known
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, path: Path, identity: Mapping[str, Any], options: Mapping[str, Any], *, overwrite: bool = False
    ) -> PredictionLog:
        """Go on with what journals of the same `identity` in the folder say, with `overwrite` begin anew.

        Raises:
            WorkspaceError: a log is damaged.
        """
        cases: Entries = {}
        same_model, other_models = [], []
        is_known = False
        for file in () if overwrite else sorted(path.parent.glob("prediction*.json")):
            if not _JOURNALS.fullmatch(file.name):
                continue
            model, entries = _read(file)
            is_known |= model == identity
            if model != identity:
                other_models.append(entries)
            elif file.name == path.name:
                cases = entries
            else:
                same_model.append(entries)
        return cls(
            path, identity, options, cases=cases, same_model=same_model, other_models=other_models, is_known=is_known
        )

    def left_of(self, jobs: Sequence[Job], reader: str) -> list[Job]:
        """Return the jobs whose files were not made from the input as it is now, or are damaged; note the others.

        A label map that changed and that `reader` can read was corrected by somebody, and is kept.
        """
        left = []
        for job in jobs:
            name = job.case.identifier
            known = [each[name] for each in (self.cases, *self._same_model) if name in each]
            found = next((entry for entry in known if self._is_whole(entry, job, reader)), None)
            if found is not None:
                self.cases[name] = found
                continue
            left.append(job)
            changed = self._changed(known[0], job) if known and known[0].get("inputs") == job.inputs else ()
            for file in filter(Path.is_file, changed):
                logger.warning("%s: is damaged; predicted again", file)
        return left

    def require_unused(self, jobs: Sequence[Job]) -> None:
        """Refuse to replace predictions that another model, or another program, has made.

        Raises:
            WorkspaceError: there are some.
        """
        folder = self.path.parent
        taken = [
            job.output.name
            for job in jobs
            if job.output.exists() and (not self._is_known or any(self._made(each, job) for each in self._other_models))
        ]
        if taken:
            raise WorkspaceError(
                f"{folder}: holds predictions of another model or other options ({taken[0]}"
                f"{f' and {len(taken) - 1} more' if len(taken) > 1 else ''}); choose another output folder or overwrite"
            )

    def add(self, job: Job, record: CaseRecord) -> None:
        """Note a finished case."""
        values = {key: round(value, 3) for key, value in asdict(record).items() if key.endswith("_s")}
        values |= {key: asdict(record)[key] for key in ("tiles", "tiles_skipped", *ASSESSED)}
        files = {self._name(file): _state(file, with_checksum=file not in job.probabilities) for file in job.files}
        with self._lock:
            before = self.cases.get(record.case, {})
            if before.get("inputs") == job.inputs:  # what an earlier run wrote for the case stays good
                files = {**before.get("files", {}), **files}
            self.cases[record.case] = {
                "inputs": job.inputs, "output": record.output.name, **values, "files": files
            }  # fmt: skip
            self.save()

    def kept(self, job: Job) -> CaseRecord:
        """Return the record of a case that was finished before."""
        entry = self.cases.get(job.case.identifier, {})
        known = {key: entry[key] for key in ASSESSED if key in entry}
        known["warnings"] = tuple(known.get("warnings", ()))
        return CaseRecord(case=job.case.identifier, output=job.output, kept=True, **known)

    def save(self) -> None:
        """Write the document."""
        peak = peak_bytes()
        versions = {"segwright": segwright.__version__, "torch": torch.__version__, "numpy": np.__version__}
        write_checked_json(
            self.path,
            {
                "schema_version": SCHEMA_VERSION,
                "model": self.identity,
                "options": self.options,
                "versions": versions,
                "peak_memory_mib": None if peak is None else round(peak / 2**20),
                "cases": dict(sorted(self.cases.items())),
            },
        )

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path.parent).as_posix()

    def _is_whole(self, entry: Mapping[str, Any], job: Job, reader: str) -> bool:
        files = entry.get("files", {})
        if entry.get("inputs") != job.inputs or not all(self._name(file) in files for file in job.files):
            return False
        changed = self._changed(entry, job)
        is_foreign = any(self._made(each, job) for each in self._other_models)
        was_edited = changed == [job.output] and not _is_as(job.output, files[self._name(job.output)], at_once=True)
        if was_edited and not is_foreign and _is_readable(job.output, reader):
            logger.info("%s: was changed since it was predicted; kept", job.output)
            return True
        return not changed

    def _changed(self, entry: Mapping[str, Any], job: Job) -> list[Path]:
        """Return the files of a case that are not as the entry says, or are gone."""
        files = entry.get("files", {})
        return [file for file in job.files if self._name(file) in files and not _is_as(file, files[self._name(file)])]

    def _made(self, entries: Entries, job: Job) -> bool:
        """Whether the label map is the one that a log's run made."""
        files = entries.get(job.case.identifier, {}).get("files", {})
        return job.output.is_file() and _is_as(job.output, files.get(self._name(job.output)))


def _state(file: Path, *, with_checksum: bool = False) -> list[int] | None:
    """Return size and time of a file, which a replaced one does not share; None where there is none.

    Its checksum tells damage as well. Probabilities, which may be large, have theirs beside them or inside.
    """
    if not file.is_file():
        return None
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, *([file_crc(file)] if with_checksum else ())]


def _is_as(file: Path, state: Any, *, at_once: bool = False) -> bool:
    """Whether a file is as a journal's entry says, whose checksum is compared last; earlier versions had none."""
    if not isinstance(state, list) or _state(file) != state[:_TOLD_AT_ONCE]:
        return False
    return at_once or len(state) == _TOLD_AT_ONCE or file_crc(file) == state[_TOLD_AT_ONCE]


def _is_readable(file: Path, reader: str) -> bool:
    try:
        read_label(file, reader)
    except SegwrightError:
        return False
    return True


def _read(file: Path) -> tuple[Any, Entries]:
    """Return the model and the cases of a log."""
    try:
        document = read_checked_json(file)
    except SegwrightError as error:
        raise WorkspaceError(f"{error}; {_REMEDY}") from error
    cases = document.get("cases", {}) if isinstance(document, dict) else None
    if not isinstance(cases, dict) or not all(isinstance(entry, dict) for entry in cases.values()):
        raise WorkspaceError(f"{file}: expected an object with 'model' and 'cases', as predict writes it; {_REMEDY}")
    return document.get("model"), cases
