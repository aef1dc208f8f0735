"""Predict with an ensemble of models: the mean of their probabilities (nnU-Net behaviour 11.7).

Each model's probabilities go to a compressed file on the case's own grid; then they are averaged slab by slab. So
an ensemble needs the memory of one model, whatever the numbers of models and classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ModelError
from segwright.core.parallel import fork_safe
from segwright.data.images.image_io import Volume
from segwright.data.labels import Labels
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.case_predictor import CasePredictor
from segwright.inference.export.labels import LabelMap
from segwright.inference.export.postprocessing import NO_POSTPROCESSING, PostProcessing
from segwright.inference.export.writers import ProbabilityFormat, StoredProbabilities, store_maps
from segwright.inference.prediction import ArrayPredictor, Prediction
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.reliability.uncertainty import MAPS, Uncertainty, pooled_maps
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tile_planes import TileCount
from segwright.inference.window.timer import Timer
from segwright.preprocessing.pipeline import PredictionInput

SLAB_BYTES: Final = 128 * 2**20
"""Memory for averaging: the mean of one head, the array added to it, and the best score so far. A slab has one head but
many planes, since chunks that cross slabs are read once for each (24 heads on 120x256x256: 2.4 s; slabs of all heads:
7.9 s)."""


class Ensemble(ArrayPredictor):
    """Several models that predict together, with the interface of a single `CasePredictor`.

    Args:
        predictors: of models that were trained on the same channels and labels; their plans may differ.
        postprocessing: is applied to label maps, not to probabilities.

    Raises:
        ModelError: the models do not belong together.
    """

    def __init__(self, predictors: Sequence[CasePredictor], postprocessing: PostProcessing = NO_POSTPROCESSING) -> None:
        require_same_task(predictors)
        self.predictors = tuple(predictors)
        self.postprocessing = postprocessing
        self.reliability = predictors[0].reliability
        self.labels = predictors[0].labels

    @property
    def identity(self) -> dict[str, Any]:
        """The identities of all members, and the post-processing."""
        steps = self.postprocessing.to_json()
        members = [predictor.identity for predictor in self.predictors]
        return {"ensemble": members, **({"postprocessing": steps} if steps else {})}

    @property
    def reader(self) -> str:
        """The reader and writer of images that all members share."""
        return self.predictors[0].reader

    @property
    def num_channels(self) -> int:
        """Channels of an image, the same for all members."""
        return self.predictors[0].num_channels

    @fork_safe
    def predict_case(self, volume: Volume, *, probabilities: bool = False, uncertainty: bool = False) -> Prediction:
        """Predict one case on its own grid: labels, and on request mean probabilities and uncertainty maps."""
        with TemporaryDirectory(prefix="segwright-ensemble-") as scratch:
            stored, *_ = model_probabilities(self.predictors, volume, Path(scratch), maps=uncertainty)
            arrays = [each.array for each in stored]
            label_map = self.postprocessing(mean_labels(arrays, self.labels))
            mean = _mean(arrays) if probabilities else None
            disagreements = [each.disagreement for each in stored]
            maps = pooled_maps(arrays, disagreements, self.labels, 0, label_map.shape[0]) if uncertainty else None
        return Prediction(
            labels=label_map, probabilities=mean, uncertainty=None if maps is None else Uncertainty(*maps)
        )


def require_same_task(predictors: Sequence[CasePredictor]) -> None:
    """Check that models can be averaged.

    Raises:
        ModelError: channels, labels or reader differ.
    """
    first, *others = predictors
    for other in others:
        differing = [what for what, value in _task(first).items() if _task(other)[what] not in (value, None) and value]
        if differing:
            names = (first.origin.get("model"), other.origin.get("model"))
            raise ModelError(
                f"models {names[0]} and {names[1]} have different {' and '.join(differing)}; an ensemble needs models "
                "of the same task"
            )


def _task(predictor: CasePredictor) -> dict[str, Any]:
    """Return what the members of an ensemble must have in common; None for what is not known."""
    description = predictor.description
    return {
        "labels": predictor.labels,
        "numbers of channels": predictor.num_channels,
        "readers": predictor.reader,
        "channel names": description and list(description.channel_names.values()),
        "file endings": description and description.file_ending,
    }


def mean_labels(
    arrays: Sequence[Any], labels: Labels, store: StoredProbabilities | None = None, *, temperature: float = 1.0
) -> LabelMap:
    """Return the label map (Z, Y, X) of the mean of probabilities (H, Z, Y, X), arrays in memory or on disk.

    The mean is also written to `store`, there as if its logits had been divided by `temperature`.
    """
    shape = tuple(arrays[0].shape)
    result: npt.NDArray[Any] = np.zeros(shape[1:], dtype=labels.dtype)
    depth = max(1, SLAB_BYTES // (3 * 4 * int(np.prod(shape[2:]))))
    for start in range(0, shape[1], depth):
        stop = min(start + depth, shape[1])
        heads = _mean_heads(arrays, start, stop, store if temperature == 1 else None)
        result[start:stop] = labels.decide_one_by_one(heads, (stop - start, *shape[2:]), logits=False)
        if store is not None and temperature != 1:
            _store_scaled(arrays, labels, start, stop, store, temperature)
    return result


def _store_scaled(
    arrays: Sequence[Any], labels: Labels, start: int, stop: int, store: StoredProbabilities, temperature: float
) -> None:
    """Store the temperature-scaled mean of planes [start, stop), one head at a time: p^(1/T), normalised."""
    power = np.float32(1 / temperature)
    total: Any = None
    if not labels.has_regions:
        total = sum(values**power for values in _mean_heads(arrays, start, stop, None))
    for head, values in enumerate(_mean_heads(arrays, start, stop, None)):
        raised = values**power
        whole = raised + (1 - values) ** power if total is None else total
        store.put_head(head, start, stop, raised / whole)


def _mean(arrays: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return the mean of probabilities (H, Z, Y, X) in memory."""
    mean = np.empty(arrays[0].shape, dtype=np.float32)
    for head, values in enumerate(_mean_heads(arrays, 0, mean.shape[1], None)):
        mean[head] = values
    return mean


def _mean_heads(
    arrays: Sequence[Any], start: int, stop: int, store: StoredProbabilities | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the mean (stop - start, Y, X) of each head in planes [start, stop), and write it to `store`."""
    for head in range(arrays[0].shape[0]):
        mean = np.array(arrays[0][head, start:stop], dtype=np.float32)
        for array in arrays[1:]:
            mean += array[head, start:stop]
        mean /= len(arrays)
        if store is not None:
            store.put_head(head, start, stop, mean)
        yield mean


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPrediction:
    """One model's prediction of a case: probabilities (H, Z, Y, X), disagreement (Z, Y, X) on disk, and statistics."""

    array: Any
    observation: Observation
    disagreement: Any = None


def model_probabilities(
    predictors: Sequence[CasePredictor],
    volume: Volume,
    scratch: Path,
    *,
    disagreement: bool = False,
    maps: bool = False,
    count: TileCount | None = None,
) -> tuple[list[StoredPrediction], Provenance, Timer, float]:
    """Predict one case with each model and store the probabilities, on the case's own grid, in files of `scratch`.

    `disagreement` measures it for the statistics; `maps` also stores it as a map; `count` is updated in place.

    Returns:
        The stored predictions, the provenance of the first model's input, the timer of all forward passes, and the
        seconds of preprocessing.
    """
    provenances = []
    timer, prepare_s = Timer(tiles=count or TileCount()), 0.0
    stored = []
    for index, predictor in enumerate(predictors):
        start = time.perf_counter()
        prepared: PredictionInput = predictor.prepare(volume)
        prepare_s += time.perf_counter() - start
        planes = timer.watch(predictor.planes(prepared.image, count=timer.tiles, disagreement=disagreement or maps))
        stored.append(store_probabilities(predictor, prepared, planes, scratch, str(index), maps=maps))
        provenances.append(prepared.provenance)
        del prepared
    return stored, provenances[0], timer, prepare_s


def store_probabilities(
    predictor: CasePredictor,
    prepared: PredictionInput,
    planes: Iterable[Planes],
    folder: Path,
    name: str,
    *,
    maps: bool = False,
) -> StoredPrediction:
    """Predict a case and write its probabilities, with `maps` also its disagreement, to files in `folder`."""
    import blosc2  # importing it takes 0.3 s, which other predictions need not wait for

    inverse, observer = predictor.inverse_resampling(prepared), predictor.observer(prepared)
    stored_maps, map_writer = store_maps(folder / f"{name}_maps.b2nd", inverse, len(MAPS)) if maps else (None, None)
    with ProbabilityFormat(kind="b2nd").open(folder, name, predictor.labels, inverse, {}) as writer:
        predictor.export(prepared, observer.watch(planes, keep=maps), writer=writer, maps=map_writer)
    array = blosc2.open(str(folder / f"{name}.b2nd"), mode="r")
    disagreement = None if stored_maps is None else _OneMap(stored_maps, MAPS.index("disagreement"))
    return StoredPrediction(array=array, observation=observer.observation(), disagreement=disagreement)


class _OneMap:
    """One map (Z, Y, X) of an array (maps, Z, Y, X) on disk; planes are read by slicing."""

    def __init__(self, stored: Any, index: int) -> None:
        self._stored = stored
        self._index = index

    def __getitem__(self, planes: slice) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._stored[self._index, planes]
        return found
