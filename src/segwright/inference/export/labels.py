"""Convert logits on the network's grid to labels and probabilities on the case's own grid, slab by slab.

An array of classes x original grid exists only where probabilities are requested in memory.

Legend: H heads, (Z, Y, X) a grid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from segwright.core.torch_threads import num_threads, single_threaded_pool
from segwright.data.images.image_io import write_labels
from segwright.data.labels import Labels
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.export.to_original_grid import InverseResampling, Slab
from segwright.inference.reliability.uncertainty import disagreement_map, entropy_map
from segwright.inference.window.stitching import Planes

LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class ProbabilityWriter(Protocol):
    """Receives probabilities, or other maps, slab by slab."""

    def write(self, start: int, stop: int, probabilities: npt.NDArray[np.float32]) -> None:
        """Receive (H, stop - start, Y, X), planes [start, stop) of the cropped case, axes as those of the planes."""


class MapArray:
    """Maps in memory: `array` (M, Z, Y, X) float32 on the whole case, axes as read, 0 outside the crop."""

    def __init__(self, inverse: InverseResampling, num_maps: int) -> None:
        self.array: npt.NDArray[np.float32] = np.zeros((num_maps, *inverse.case_shape), dtype=np.float32)
        self._inside = inverse.inside(self.array)

    def write(self, start: int, stop: int, probabilities: npt.NDArray[np.float32]) -> None:
        """Take planes [start, stop) of the cropped case."""
        self._inside[:, start:stop] = probabilities


class ProbabilityArray(MapArray):
    """Probabilities in memory; outside the crop, background's is 1 if it has its own head (nnU-Net behaviour 4.5)."""

    def __init__(self, inverse: InverseResampling, labels: Labels) -> None:
        super().__init__(inverse, labels.num_heads)
        if not labels.has_regions:
            self.array[0] = 1


def export_planes(
    planes: Iterable[Planes],
    inverse: InverseResampling,
    labels: Labels,
    *,
    writer: ProbabilityWriter | None = None,
    maps: ProbabilityWriter | None = None,
    temperature: float = 1.0,
) -> LabelMap:
    """Decide the label map, in the reader's axis order, of planes of logits as they arrive (nnU-Net behaviour 11.5).

    Memory: the label map, the planes that wait and one slab. Voxels outside the crop become background.

    Args:
        planes: logits on the network's grid, (H, planes, Y, X), in order; for `maps` the last head is the disagreement.
        inverse: resamples to the case's grid.
        labels: of the heads.
        writer: receives the probabilities.
        maps: receives the maps of `uncertainty.MAPS`.
        temperature: divides the logits for probabilities and their entropy.

    Raises:
        DatasetError: the number of heads does not fit the labels.
    """
    result: npt.NDArray[Any] = np.zeros(inverse.case_shape, dtype=labels.dtype)
    inside = inverse.inside(result)
    checked = _check_num_heads(planes, labels, more=int(maps is not None))
    if writer is None and maps is None:
        _decide_in_threads(inverse.slabs(checked), inside, labels)
        return result
    for slab in inverse.slabs(checked, heads_at_once=labels.num_heads):
        scores = slab.scores()
        logits, disagreement = scores[: labels.num_heads], scores[labels.num_heads :]
        inside[slab.start : slab.stop] = labels.decide(logits, logits=True)
        probabilities = labels.probabilities(logits / np.float32(temperature))
        if writer is not None:
            writer.write(slab.start, slab.stop, probabilities)
        if maps is not None:
            both_maps = (entropy_map(probabilities, labels), disagreement_map(disagreement[0]))
            maps.write(slab.start, slab.stop, np.stack(both_maps))
    return result


def _decide_in_threads(slabs: Iterable[Slab], inside: npt.NDArray[Any], labels: Labels) -> None:
    """Fill `inside` with the labels of the slabs, several slabs in parallel.

    Each thread uses one torch thread: torch's own threads synchronise after each of thousands of small steps, which
    takes ten times as long where another program uses a processor. With one torch thread no pool is used.
    """
    count = num_threads()

    def fill(slab: Slab) -> None:
        inside[slab.start : slab.stop] = slab.decided(labels)

    if count == 1:
        for slab in slabs:
            fill(slab)
        return
    waiting: deque[Future[None]] = deque()
    with single_threaded_pool(count, "segwright-slabs") as pool:
        for slab in slabs:
            waiting.append(pool.submit(fill, slab))
            if len(waiting) > count:
                waiting.popleft().result()
        for slab_done in waiting:
            slab_done.result()


def _check_num_heads(planes: Iterable[Planes], labels: Labels, *, more: int) -> Iterable[Planes]:
    """Yield the planes after checking that they have `more` heads than the labels."""
    for part in planes:
        labels.decide(np.empty((len(part.logits) - more, 0), dtype=np.float32), logits=True)  # raises if not
        yield part


def save_labels(label_map: LabelMap, path: Path, provenance: Provenance, reader: str) -> None:
    """Write a label map in the format and geometry of the images it was predicted from, atomically."""
    write_labels(label_map, path, provenance.properties, reader)
