"""Several models on the same cases: their probabilities averaged, as nnU-Net's ensembling does (spec B 5.1).

Each model's probabilities go to a compressed file on the case's own grid; then they are averaged slab by slab. So
memory is that of one model, whatever their number and the number of classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import blosc2
import numpy as np
import numpy.typing as npt

from segwright.core.documents import write_json
from segwright.core.errors import ModelError
from segwright.core.log import progress
from segwright.data.dataset import list_cases
from segwright.data.images import Volume, write_labels
from segwright.data.labels import Labels
from segwright.inference.export import LabelMap
from segwright.inference.files import (
    PREDICTION_JSON,
    CaseRecord,
    Job,
    Journal,
    identity,
    job_of,
    naming,
    read_volume,
    require_apart,
    require_unused,
)
from segwright.inference.predictor import Predictor
from segwright.inference.sliding import TileCount
from segwright.inference.writers import Saving
from segwright.preprocessing.pipeline import Preprocessed
from segwright.workspace import DATASET_JSON

SLAB_BYTES: Final = 64 * 2**20
"""Probabilities of one model that are averaged at once."""


def predict_ensemble(
    predictors: Sequence[Predictor], input_folder: Path, output_folder: Path, *, overwrite: bool = False
) -> list[CaseRecord]:
    """Predict every case of a folder with all models and write the labels of their mean probabilities.

    Args:
        predictors: of models that were trained on the same channels and labels; their plans may differ.
        input_folder: `<case>_0000<ending>` and so on; never written to.
        output_folder: as of `files.predict_files`; finished cases are kept.
        overwrite: predict everything anew.

    Raises:
        ModelError: the models do not belong together.
        SegwrightError: as `files.predict_files`.
    """
    first = predictors[0]
    description = first.description
    assert description is not None, "a predictor for files is made by load_predictor"
    require_same_task(predictors)
    require_apart(input_folder, output_folder)
    cases = list_cases(input_folder, description.file_ending, len(description.channel_names))
    models = {"ensemble": [identity(predictor) for predictor in predictors]}
    journal = Journal.open(output_folder / PREDICTION_JSON, models, overwrite=overwrite)
    jobs = [job_of(case, output_folder, first, description.file_ending, None) for case in cases]
    if not journal.known and not overwrite:
        require_unused(jobs, output_folder)
    write_json(output_folder / DATASET_JSON, description.raw(), indent=4)
    journal.save()
    records = []
    for job in progress(jobs, title="predicting" if jobs else "", total=len(jobs)):
        if journal.is_finished(job):
            records.append(CaseRecord(case=job.case.identifier, output=job.output, kept=True))
        else:
            records.append(_predict(predictors, job, journal))
    return records


def require_same_task(predictors: Sequence[Predictor]) -> None:
    """See that models can be averaged.

    Raises:
        ModelError: channels, labels or reader differ.
    """
    first = predictors[0]
    for other in predictors[1:]:
        for what, one, two in (
            ("labels", first.labels, other.labels),
            ("number of channels", first.num_channels, other.num_channels),
            ("reader", first.plan.image_reader_writer, other.plan.image_reader_writer),
        ):
            if one != two:
                names = (first.origin.get("model"), other.origin.get("model"))
                raise ModelError(
                    f"models {names[0]} and {names[1]} have another {what}; only models of one task average"
                )


def predict_volume(predictors: Sequence[Predictor], volume: Volume, scratch: Path) -> tuple[LabelMap, TileCount]:
    """Return the label map of one case, on its own grid, by the mean probabilities of all models."""
    labels = predictors[0].labels
    count = TileCount()
    saving = Saving(kind="b2nd")
    for index, predictor in enumerate(predictors):
        prepared: Preprocessed = predictor.prepare(volume)
        planes = predictor.planes(prepared.image, count=count)
        with saving.open(scratch, str(index), labels, predictor.way_back(prepared), {}) as sink:
            predictor.export(prepared, planes, sink=sink)
        del prepared
    arrays = [blosc2.open(str(scratch / f"{index}.b2nd"), mode="r") for index in range(len(predictors))]
    return mean_labels(arrays, labels), count


def mean_labels(arrays: Sequence[Any], labels: Labels) -> LabelMap:
    """Return the label map (Z, Y, X) of the mean of probabilities (H, Z, Y, X), arrays in memory or on disk."""
    shape = tuple(arrays[0].shape)
    result: npt.NDArray[Any] = np.zeros(shape[1:], dtype=labels.dtype)
    depth = max(1, SLAB_BYTES // (4 * int(np.prod((shape[0], *shape[2:])))))
    for start in range(0, shape[1], depth):
        stop = min(start + depth, shape[1])
        total = np.zeros((shape[0], stop - start, *shape[2:]), dtype=np.float32)
        for array in arrays:
            total += array[:, start:stop]
        result[start:stop] = labels.decide(total / np.float32(len(arrays)), logits=False)
    return result


def _predict(predictors: Sequence[Predictor], job: Job, journal: Journal) -> CaseRecord:
    begin = time.perf_counter()
    reader = predictors[0].plan.image_reader_writer
    with ExitStack() as stack:
        stack.enter_context(naming(job.case))
        scratch = stack.enter_context(TemporaryDirectory(dir=job.output.parent, prefix=".ensemble-"))
        volume = read_volume(job.case, reader)
        read_s = time.perf_counter() - begin
        label_map, count = predict_volume(predictors, volume, Path(scratch))
        write_labels(label_map, job.output, volume.properties, reader)
    record = CaseRecord(
        case=job.case.identifier,
        output=job.output,
        read_s=read_s,
        predict_s=time.perf_counter() - begin - read_s,
        tiles=count.tiles,
        tiles_reused=count.reused,
    )
    journal.add(job, record)
    return record
