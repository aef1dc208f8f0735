"""Several models on the same cases: their probabilities averaged, as nnU-Net's ensembling does (spec B 5.1).

Each model's probabilities go to a compressed file on the case's own grid; then they are averaged slab by slab. So
memory is that of one model, whatever their number and the number of classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import blosc2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from segwright.core.documents import write_json
from segwright.core.errors import ModelError
from segwright.core.log import progress
from segwright.core.parallel import fork_safe
from segwright.data.dataset import list_cases
from segwright.data.images import Volume, write_labels
from segwright.data.labels import Labels
from segwright.data.store import Provenance
from segwright.inference.arrays import Placed, place
from segwright.inference.export import LabelMap
from segwright.inference.files import (
    CaseRecord,
    Job,
    Journal,
    identity,
    job_of,
    journal_name,
    naming,
    read_volume,
    require_apart,
    require_unused,
)
from segwright.inference.postprocessing import NO_POSTPROCESSING, PostProcessing
from segwright.inference.predictor import Prediction, Predictor
from segwright.inference.sliding import TileCount
from segwright.inference.stitching import Planes
from segwright.inference.writers import Saving, StoredProbabilities
from segwright.preprocessing.pipeline import Preprocessed
from segwright.workspace import DATASET_JSON

SLAB_BYTES: Final = 128 * 2**20
"""What averaging holds at once: one head's mean, what is added to it, and the best so far. Few heads and many planes,
for chunks that lie across a slab are opened for each (24 heads on 120x256x256: 2.4 s, all heads at once 7.9 s)."""


class Ensemble:
    """Several models that answer as one: what `Predictor` has for callers is here too.

    Args:
        predictors: of models that were trained on the same channels and labels; their plans may differ.
        postprocessing: is applied to label maps, not to probabilities.

    Raises:
        ModelError: the models do not belong together.
    """

    def __init__(self, predictors: Sequence[Predictor], postprocessing: PostProcessing = NO_POSTPROCESSING) -> None:
        require_same_task(predictors)
        self.predictors = tuple(predictors)
        self.postprocessing = postprocessing
        self.labels = predictors[0].labels
        self.num_channels = predictors[0].num_channels
        self.reader = predictors[0].plan.image_reader_writer

    @fork_safe
    def predict_case(self, volume: Volume, *, probabilities: bool = False) -> Prediction:
        """Return labels, and mean probabilities where asked for, of one case on its own grid."""
        with TemporaryDirectory(prefix="segwright-ensemble-") as scratch:
            arrays, *_ = _probabilities(self.predictors, volume, Path(scratch))
            label_map = self.postprocessing(mean_labels(arrays, self.labels))
            mean = _mean(arrays) if probabilities else None
        return Prediction(labels=label_map, probabilities=mean)

    def predict(
        self,
        array: npt.NDArray[Any] | Tensor,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
    ) -> LabelMap:
        """Return the label map of an array, on its grid and in its axis order; arguments as in `arrays.place`."""
        placed = self._place(array, spacing, affine)
        labels: LabelMap = placed.back(self.predict_case(placed.volume).labels)
        return labels

    def predict_probabilities(
        self,
        array: npt.NDArray[Any] | Tensor,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
    ) -> Prediction:
        """Return label map and mean probabilities (H, *S) of an array, as `predict` does."""
        placed = self._place(array, spacing, affine)
        found = self.predict_case(placed.volume, probabilities=True)
        assert found.probabilities is not None
        return Prediction(labels=placed.back(found.labels), probabilities=placed.back(found.probabilities))

    def predict_files(self, images: Path | str, output: Path | str, **options: Any) -> list[CaseRecord]:
        """Predict a folder of images into another one; options as of `predict_ensemble`."""
        return predict_ensemble(self.predictors, Path(images), Path(output), self.postprocessing, **options)

    def _place(
        self, array: npt.NDArray[Any] | Tensor, spacing: Sequence[float] | None, affine: npt.ArrayLike | None
    ) -> Placed:
        return place(array, num_channels=self.num_channels, reader=self.reader, spacing=spacing, affine=affine)


@fork_safe
def predict_ensemble(
    predictors: Sequence[Predictor],
    input_folder: Path,
    output_folder: Path,
    postprocessing: PostProcessing = NO_POSTPROCESSING,
    *,
    probabilities: bool | Saving = False,
    overwrite: bool = False,
    part: int = 0,
    parts: int = 1,
) -> list[CaseRecord]:
    """Predict every case of a folder with all models and write the labels of their mean probabilities.

    Args:
        predictors: of models that were trained on the same channels and labels; their plans may differ.
        input_folder: `<case>_0000<ending>` and so on; never written to.
        output_folder: as of `files.predict_files`; finished cases are kept.
        postprocessing: of the label maps.
        probabilities: also write their mean, as of `files.predict_files`.
        overwrite: predict everything anew.
        part: predict every `parts`-th case, beginning with this one (from 0).
        parts: into how many parts the cases are dealt.

    Raises:
        ModelError: the models do not belong together.
        SegwrightError: as `files.predict_files`.
    """
    first = predictors[0]
    description = first.description
    assert description is not None, "a predictor for files is made by load_predictor"
    require_same_task(predictors)
    require_apart(input_folder, output_folder)
    name = journal_name(part, parts)
    cases = list_cases(input_folder, description.file_ending, len(description.channel_names))[part::parts]
    models: dict[str, Any] = {"ensemble": [identity(predictor) for predictor in predictors]}
    if postprocessing.steps:
        models["postprocessing"] = postprocessing.to_json()
    journal = Journal.open(output_folder / name, models, overwrite=overwrite)
    saving = Saving(kind="npz") if probabilities is True else probabilities or None
    if saving is not None:
        saving.require_writable(first.plan.image_reader_writer)
    jobs = [job_of(case, output_folder, first, description.file_ending, saving) for case in cases]
    if not journal.known and not overwrite:
        require_unused(jobs, output_folder)
    write_json(output_folder / DATASET_JSON, description.raw(), indent=4)
    journal.save()
    records = []
    for job in progress(jobs, title="predicting" if jobs else "", total=len(jobs)):
        if journal.is_finished(job):
            records.append(CaseRecord(case=job.case.identifier, output=job.output, kept=True))
        else:
            records.append(_predict(predictors, postprocessing, job, journal))
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


def mean_labels(arrays: Sequence[Any], labels: Labels, kept: StoredProbabilities | None = None) -> LabelMap:
    """Return the label map (Z, Y, X) of the mean of probabilities (H, Z, Y, X), arrays in memory or on disk.

    `kept` takes the mean.
    """
    shape = tuple(arrays[0].shape)
    result: npt.NDArray[Any] = np.zeros(shape[1:], dtype=labels.dtype)
    depth = max(1, SLAB_BYTES // (3 * 4 * int(np.prod(shape[2:]))))
    for start in range(0, shape[1], depth):
        stop = min(start + depth, shape[1])
        heads = _mean_heads(arrays, start, stop, kept)
        result[start:stop] = labels.decide_one_by_one(heads, (stop - start, *shape[2:]), logits=False)
    return result


def _mean(arrays: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return the mean of probabilities (H, Z, Y, X), all of it."""
    mean = np.empty(arrays[0].shape, dtype=np.float32)
    for head, values in enumerate(_mean_heads(arrays, 0, mean.shape[1], None)):
        mean[head] = values
    return mean


def _mean_heads(
    arrays: Sequence[Any], start: int, stop: int, kept: StoredProbabilities | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the mean (stop - start, Y, X) of each head in planes [start, stop)."""
    for head in range(arrays[0].shape[0]):
        mean = np.array(arrays[0][head, start:stop], dtype=np.float32)
        for array in arrays[1:]:
            mean += array[head, start:stop]
        mean /= len(arrays)
        if kept is not None:
            kept.put_head(head, start, stop, mean)
        yield mean


def _predict(predictors: Sequence[Predictor], postprocessing: PostProcessing, job: Job, journal: Journal) -> CaseRecord:
    begin = time.perf_counter()
    reader = predictors[0].plan.image_reader_writer
    with ExitStack() as stack:
        stack.enter_context(naming(job.case))
        scratch = stack.enter_context(TemporaryDirectory(dir=job.output.parent, prefix=".ensemble-"))
        volume = read_volume(job.case, reader)
        read_s = time.perf_counter() - begin
        labels = predictors[0].labels
        arrays, provenance, count = _probabilities(predictors, volume, Path(scratch))
        kept = None
        if job.saving is not None:
            folder, name, document = job.output.parent, job.case.identifier, {"model": journal.identity}
            kept = stack.enter_context(job.saving.open_whole(folder, name, labels, provenance, document))
        label_map = postprocessing(mean_labels(arrays, labels, kept))
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


def _probabilities(
    predictors: Sequence[Predictor], volume: Volume, scratch: Path
) -> tuple[list[Any], Provenance, TileCount]:
    """Return each model's probabilities (H, Z, Y, X) of one case, on its own grid, in files of `scratch`.

    With it comes where the case is from, as the first model sees it.
    """
    provenances = []
    count = TileCount()
    arrays = []
    for index, predictor in enumerate(predictors):
        prepared: Preprocessed = predictor.prepare(volume)
        planes = predictor.planes(prepared.image, count=count)
        arrays.append(store_probabilities(predictor, prepared, planes, scratch, str(index)))
        provenances.append(prepared.provenance)
        del prepared
    return arrays, provenances[0], count


def store_probabilities(
    predictor: Predictor, prepared: Preprocessed, planes: Iterable[Planes], folder: Path, name: str
) -> Any:
    """Write the probabilities of a case into a file of `folder` and return it as an array (H, Z, Y, X) on disk."""
    with Saving(kind="b2nd").open(folder, name, predictor.labels, predictor.way_back(prepared), {}) as sink:
        predictor.export(prepared, planes, sink=sink)
    return blosc2.open(str(folder / f"{name}.b2nd"), mode="r")
