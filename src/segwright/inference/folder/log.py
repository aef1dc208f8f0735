"""The log of a prediction run, `prediction.json`: models, options, and for each case its files and timings."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np

import segwright
from segwright.core.errors import SegwrightError, WorkspaceError
from segwright.core.files.json_documents import write_checked_json
from segwright.core.memory import peak_bytes
from segwright.data.images.image_io import read_label
from segwright.inference.folder.jobs import Job
from segwright.inference.folder.log_files import Entries, file_state, log_files, matches, read_log
from segwright.inference.prediction import CaseRecord

logger = getLogger(__name__)

SCHEMA_VERSION: Final = 1

_COMPUTE: Final = ("torch", "onnxruntime")
"""Packages that compute networks; one of them is imported."""
_ASSESSMENT = ("confidence", "expected_dice", "warnings")


class PredictionLog:
    """The log of a run; safe to use from several threads.

    Args:
        path: of `prediction.json`.
        model: identity of the model; see `Predictor.identity`.
        options: of the run.
        cases: entries that the file has already.
        same_model: entries of the other parts' logs, of the same model.
        other_models: entries of logs of other models.
        is_known: the folder has a log of this model.
        devices: of the runs that the logs of this model record.
    """

    def __init__(
        self,
        path: Path,
        model: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        cases: Entries,
        same_model: Sequence[Entries] = (),
        other_models: Sequence[Entries] = (),
        is_known: bool = False,
        devices: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.model = model
        self.options = options
        self.cases = cases
        self._same_model = same_model
        self._other_models = other_models
        self._is_known = is_known
        self.devices = devices
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, path: Path, model: Mapping[str, Any], options: Mapping[str, Any], *, overwrite: bool = False
    ) -> PredictionLog:
        """Read the logs in the folder of `path`, and continue those of the same model; with `overwrite` ignore them.

        Raises:
            WorkspaceError: a log is damaged.
        """
        cases: Entries = {}
        same_model, other_models = [], []
        devices: list[str] = []
        is_known = False
        for file in () if overwrite else log_files(path.parent):
            logged = read_log(file)
            if logged.model != model:
                other_models.append(logged.cases)
                continue
            is_known = True
            devices += logged.devices
            if file.name == path.name:
                cases = logged.cases
            else:
                same_model.append(logged.cases)
        return cls(
            path,
            model,
            options,
            cases=cases,
            same_model=same_model,
            other_models=other_models,
            is_known=is_known,
            devices=sorted({*devices}),
        )

    def unfinished(self, jobs: Sequence[Job], reader: str) -> list[Job]:
        """Return the jobs whose files are missing, damaged or of another input; take over the entries of the others.

        A label map that changed and that `reader` can read was corrected by a user, and is kept.
        """
        unfinished = []
        for job in jobs:
            known = [entry for entry in self._entries(job) if self._is_of_same_files(entry, job)]
            unchanged = (entry for entry in known if not self._changed(entry, job))
            corrected = (entry for entry in known if self._is_corrected(entry, job, reader))
            complete = next(itertools.chain(unchanged, corrected), None)
            if complete is None:
                unfinished.append(job)
            else:
                self.cases[job.case.identifier] = complete
        return unfinished

    def damaged(self, job: Job) -> list[Path]:
        """Return the files of an unfinished job that were written for the same input, but differ from it now."""
        entry = next(self._entries(job), {})
        return [*filter(Path.is_file, self._changed(entry, job))] if entry.get("inputs") == job.inputs else []

    def is_recorded(self, job: Job) -> bool:
        """Whether a log of this model has an entry of the case, whatever its files and options."""
        return any(self._entries(job))

    def is_of_other_model(self, job: Job) -> bool:
        """Whether another model predicted the label map as it is now."""
        entries = [each.get(job.case.identifier, {}) for each in self._other_models]
        states = [entry.get("files", {}).get(self._name(job.output)) for entry in entries]
        return job.output.is_file() and any(matches(job.output, state) for state in states)

    def require_unused(self, jobs: Sequence[Job]) -> None:
        """Check that no job would replace a prediction of another model or another program.

        Raises:
            WorkspaceError: one would.
        """
        folder = self.path.parent
        taken = [
            job.output.name
            for job in jobs
            if job.output.exists() and (not self._is_known or self.is_of_other_model(job))
        ]
        if taken:
            raise WorkspaceError(
                f"{folder}: holds predictions of another model or other options ({taken[0]}"
                f"{f' and {len(taken) - 1} more' if len(taken) > 1 else ''}); choose another output folder or overwrite"
            )

    def add(self, job: Job, record: CaseRecord) -> None:
        """Record a finished case, and write the file."""
        values = {key: round(value, 3) for key, value in asdict(record).items() if key.endswith("_s")}
        values |= {key: asdict(record)[key] for key in ("tiles", "tiles_skipped", *_ASSESSMENT)}
        files = {self._name(file): file_state(file, with_checksum=file not in job.probabilities) for file in job.files}
        with self._lock:
            before = self.cases.get(record.case, {})
            if before.get("inputs") == job.inputs:  # files that an earlier run wrote for the case stay valid
                files = {**before.get("files", {}), **files}
            self.cases[record.case] = {
                "inputs": job.inputs, "output": record.output.name, **values, "files": files
            }  # fmt: skip
            self.save()

    def kept_record(self, job: Job) -> CaseRecord:
        """Return the record of a case that was finished before."""
        entry = self.cases.get(job.case.identifier, {})
        known = {key: entry[key] for key in _ASSESSMENT if key in entry}
        known["warnings"] = tuple(known.get("warnings", ()))
        return CaseRecord(case=job.case.identifier, output=job.output, kept=True, **known)

    def save(self) -> None:
        """Write the file."""
        peak = peak_bytes()
        used = {name: sys.modules[name].__version__ for name in _COMPUTE if name in sys.modules}
        versions = {"segwright": segwright.__version__, **used, "numpy": np.__version__}
        write_checked_json(
            self.path,
            {
                "schema_version": SCHEMA_VERSION,
                "model": self.model,
                "options": self.options,
                "versions": versions,
                "peak_memory_mib": None if peak is None else round(peak / 2**20),
                "cases": dict(sorted(self.cases.items())),
            },
        )

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path.parent).as_posix()

    def _entries(self, job: Job) -> Iterator[dict[str, Any]]:
        """Yield what the logs of this model say about a case, that of `path` first."""
        name = job.case.identifier
        return (each[name] for each in (self.cases, *self._same_model) if name in each)

    def _is_of_same_files(self, entry: Mapping[str, Any], job: Job) -> bool:
        files = entry.get("files", {})
        return entry.get("inputs") == job.inputs and all(self._name(file) in files for file in job.files)

    def _is_corrected(self, entry: Mapping[str, Any], job: Job, reader: str) -> bool:
        state = entry["files"][self._name(job.output)]
        if self._changed(entry, job) != [job.output] or matches(job.output, state, ignore_checksum=True):
            return False
        if self.is_of_other_model(job) or not _is_readable(job.output, reader):
            return False
        logger.info("%s: was changed since it was predicted; kept", job.output)
        return True

    def _changed(self, entry: Mapping[str, Any], job: Job) -> list[Path]:
        """Return the files of a case that are not as the entry says, or are gone."""
        files = entry.get("files", {})
        return [file for file in job.files if self._name(file) in files and not matches(file, files[self._name(file)])]


def _is_readable(file: Path, reader: str) -> bool:
    try:
        read_label(file, reader)
    except SegwrightError:
        return False
    return True
