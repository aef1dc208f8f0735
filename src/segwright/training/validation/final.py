"""Final validation of a fold: predict and score its validation cases on their original grid; resume if interrupted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
import torch
from torch import nn

from segwright.augmentation.recipe import Recipe
from segwright.core.errors import ConfigError, DatasetError, SegwrightError, locate_errors
from segwright.core.files.atomic_io import sweep_leftovers
from segwright.core.files.hashing import file_crc, file_hash
from segwright.core.files.json_documents import read_checked_json, write_checked_json
from segwright.core.files.names import MAX_FILE_NAME_BYTES, below, name_problem
from segwright.core.log import progress
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.evaluation.crossval import VALIDATION
from segwright.evaluation.scores import ExtraMetrics, Scores, evaluate_files
from segwright.inference.background_export import MAX_EXPORTS, submit_export
from segwright.inference.export.labels import LabelMap, save_labels
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.predictor import Predictor
from segwright.inference.window.stitching import Planes
from segwright.preprocessing.pipeline import PredictionInput
from segwright.training.cascade import network_input
from segwright.training.checkpointing.checkpoints import checkpoint_file
from segwright.training.distributed.context import SINGLE, DistributedContext
from segwright.training.loading.caching import TrainingCase
from segwright.training.validation.reliability import FOLDER as STATS_FOLDER
from segwright.training.validation.reliability import CaseStatsCollector
from segwright.workspace import SUMMARY_JSON

logger = getLogger(__name__)

RECORD_JSON = "predictions.json"
SCHEMA_VERSION = 1
NPZ = ProbabilityFormat(kind="npz")

FOLDERS: Final = {"final": VALIDATION, "best": f"{VALIDATION}_best"}
"""Where the predictions of a checkpoint go, in the folder of a fold."""

FileStamp = int | list[int]
"""Bytes and CRC-32 of a prediction; records of earlier versions have the bytes alone."""


class ValidationCase(TrainingCase, Protocol):
    """A preprocessed case with what maps it back to its original grid."""

    @property
    def provenance(self) -> Provenance:
        """Grid, crop and axis order of the raw case."""
        ...


class ValidationSource(Protocol):
    """Opens cases; `data.preprocessed.store.CaseStore` is one."""

    def load(self, identifier: str) -> ValidationCase:
        """Open a case."""
        ...


def build_predictor(
    network: nn.Module,
    plan: Plan,
    configuration: Configuration,
    labels: Labels,
    *,
    recipe: Recipe,
    precision: str,
    device: torch.device,
) -> Predictor:
    """Return the predictor of a trained network, with the mirrored views that the augmentation recipe allows."""
    return Predictor(
        [network],
        plan,
        configuration,
        labels,
        device=device,
        mirror_axes=recipe.mirror_axes,
        swap_sides=recipe.swaps_sides,
        precision=precision,
    )


def validate(
    predictor: Predictor,
    cases: ValidationSource,
    identifiers: Sequence[str],
    references: Mapping[str, Path] | Path | None,
    fold_folder: Path,
    *,
    file_ending: str,
    log: Callable[[str], None],
    probabilities: bool = False,
    distributed: DistributedContext = SINGLE,
    checkpoint: Literal["final", "best"] = "final",
) -> Scores:
    """Predict cases, write `<case><ending>` and `summary.json` into `validation/`, and return the scores.

    With the best checkpoint the folder is `validation_best/`, so that selection and report keep those of the final one.

    Predictions that the same weights made before are kept.

    Args:
        predictor: of the trained network.
        cases: preprocessed cases.
        identifiers: of the validation cases.
        references: label file of each, or the folder of the labels.
        fold_folder: with the checkpoint, unless none was written.
        file_ending: of predictions, as in dataset.json.
        log: logs a line.
        probabilities: also write `<case>.npz`.
        distributed: share the cases; the first one writes the record and the scores, all return the scores.
        checkpoint: whose weights the predictor has.

    Raises:
        DatasetError: a reference is missing.
        SegwrightError: a case cannot be read.
    """
    references = reference_files(references, identifiers, file_ending)
    folder, weights = below(fold_folder, FOLDERS[checkpoint]), checkpoint_file(fold_folder, checkpoint)
    weights_hash = file_hash(weights) if weights.is_file() else f"unsaved at {time.time()}"
    missing = [name for name in identifiers if name not in references or not references[name].is_file()]
    if missing:
        raise DatasetError(f"case {missing[0]}: no reference label to validate with; put it back into labelsTr")
    files = {name: below(folder, f"{name}{file_ending}") for name in identifiers}
    written = {name: (file, *_probability_files(predictor, file, name, probabilities)) for name, file in files.items()}
    record = (
        PredictionRecord.open(folder, weights_hash)
        if distributed.is_first
        else PredictionRecord(None, weights_hash, {})
    )
    todo = distributed.broadcast([name for name in identifiers if not all(map(record.has, written[name]))])
    start = time.monotonic()
    kept = f", {len(files) - len(todo)} are done already" if len(todo) < len(files) else ""
    log(f"validation: predicting {len(todo)} cases with {len(predictor.window.flips)} mirrored views{kept}")
    _predict(predictor, cases, {name: written[name] for name in distributed.local_items(todo)}, record)
    for done in distributed.gather(record.done)[1:]:
        record.add(*(folder / name for name in done))
    if not distributed.is_first:
        distributed.barrier()
        return Scores.load(folder / SUMMARY_JSON)
    scores = score(references, files, folder, labels=predictor.labels, reader=predictor.reader)
    distributed.barrier()
    log(f"validation complete in {time.monotonic() - start:.1f} s, mean validation Dice {scores.mean_dice:.4f}")
    return scores


def reference_files(
    references: Mapping[str, Path] | Path | None, identifiers: Sequence[str], file_ending: str
) -> dict[str, Path]:
    """Return the original label file of each case.

    Args:
        references: folder of the label files, or the file of each case.
        identifiers: of the cases.
        file_ending: of the files in the folder.

    Raises:
        ConfigError: there are no references.
    """
    if references is None:
        raise ConfigError("the final validation needs the original labels; give the trainer references=")
    if isinstance(references, Path):
        return {name: references / f"{name}{file_ending}" for name in identifiers}
    return dict(references)


def score(
    references: Mapping[str, Path], predictions: Mapping[str, Path], folder: Path, *, labels: Labels, reader: str
) -> Scores:
    """Score the predictions of cases, write `summary.json` into `folder`, and return the scores."""
    scores = evaluate_files(
        [(references[name], predictions[name]) for name in sorted(predictions)],
        labels=labels,
        reader=reader,
        extra=ExtraMetrics(surface=True),
    )
    scores.save(folder / SUMMARY_JSON)
    return scores


class PredictionRecord:
    """The finished predictions and the hash of their weights: `predictions.json`, rewritten after every case.

    Without a path it is only in memory.
    """

    def __init__(self, path: Path | None, weights_hash: str, done: dict[str, FileStamp]) -> None:
        self._path = path
        self._hash = weights_hash
        self.done = done

    @classmethod
    def open(cls, folder: Path, weights_hash: str) -> PredictionRecord:
        """Read the record if it is of these weights; else start a new one and remove the predictions it lists."""
        path = folder / RECORD_JSON
        sweep_leftovers(folder)
        try:
            document = read_checked_json(path) if path.is_file() else {}
        except SegwrightError as error:
            logger.warning("%s: held-out cases are predicted again", error)
            document = {}
        entries = document.get("files") if isinstance(document, dict) else None
        # The document is untrusted input, and the files it names are removed.
        done = {
            name: kept for name, kept in (entries or {}).items() if not name_problem(name, longest=MAX_FILE_NAME_BYTES)
        }
        if not isinstance(document, dict) or document.get("weights_hash") != weights_hash:
            for name in done:
                below(folder, name).unlink(missing_ok=True)
            (folder / SUMMARY_JSON).unlink(missing_ok=True)
            shutil.rmtree(folder / STATS_FOLDER, ignore_errors=True)
            done = {}
        return cls(path, weights_hash, done)

    def has(self, file: Path) -> bool:
        """Return whether a prediction exists as it was recorded."""
        kept = self.done.get(file.name)
        if kept is None or not file.is_file():
            return False
        if kept in (file.stat().st_size, _stamp(file)):
            return True
        logger.warning("%s: is damaged or was changed; predicted again", file)
        return False

    def add(self, *files: Path) -> None:
        """Record finished predictions."""
        self.done.update({file.name: _stamp(file) for file in files})
        if self._path is not None:
            document = {"schema_version": SCHEMA_VERSION, "weights_hash": self._hash}
            write_checked_json(self._path, {**document, "files": dict(sorted(self.done.items()))})


def _stamp(file: Path) -> list[int]:
    return [file.stat().st_size, file_crc(file)]


def _probability_files(predictor: Predictor, file: Path, name: str, wanted: bool) -> tuple[Path, ...]:
    return NPZ.files(file.parent, name, predictor.labels) if wanted else ()


def _predict(
    predictor: Predictor, cases: ValidationSource, files: Mapping[str, Sequence[Path]], record: PredictionRecord
) -> None:
    """Predict case by case; a thread exports the previous case.

    Args:
        predictor: of the trained network.
        cases: preprocessed cases.
        files: to write for each case: the label map, and the probabilities if they are saved.
        record: of finished predictions.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="segwright-export") as exporting:
        exports: list[Future[None]] = []
        for name, written in progress(files.items(), title="validating" if files else "", total=len(files)):
            case = cases.load(name)
            image = network_input(case.image, case.label, predictor.labels)
            prepared = PredictionInput(image=image, provenance=case.provenance)
            collector = CaseStatsCollector(predictor, prepared, np.asarray(case.label[...])[0])
            with locate_errors(f"case {name}"):
                export = submit_export(
                    exporting,
                    predictor.planes(image, disagreement=True),
                    partial(_decide, predictor, prepared, collector, written, name),
                    partial(_write, predictor, case.provenance, collector, written, record, name),
                    hold=predictor.may_hold(image),
                )
            exports.append(export)
            if len(exports) >= MAX_EXPORTS:
                exports.pop(0).result()
        for export in exports:
            export.result()


def _decide(
    predictor: Predictor,
    prepared: PredictionInput,
    collector: CaseStatsCollector,
    files: Sequence[Path],
    name: str,
    planes: Iterable[Planes],
) -> LabelMap:
    """Decide the labels of a case; collect its statistics and write its probabilities on the way."""
    with locate_errors(f"case {name}"), ExitStack() as stack:
        writer = None
        if len(files) > 1:
            inverse = predictor.inverse_resampling(prepared)
            writer = stack.enter_context(NPZ.open(files[0].parent, name, predictor.labels, inverse, {}))
        return predictor.export(prepared, collector.collect(planes), writer=writer)


def _write(
    predictor: Predictor,
    provenance: Provenance,
    collector: CaseStatsCollector,
    files: Sequence[Path],
    record: PredictionRecord,
    name: str,
    label_map: LabelMap,
) -> None:
    """Write the label map and the statistics of a case."""
    with locate_errors(f"case {name}"):
        save_labels(label_map, files[0], provenance, predictor.reader)
    collector.stats().save(files[0].parent, name)
    record.add(*files)
