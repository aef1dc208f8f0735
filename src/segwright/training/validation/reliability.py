"""Per-case reliability statistics of held-out predictions, one JSON document for each case.

The Dice estimator and the calibration of a selected model are fitted on them, so no probabilities need to be kept.
Legend: H heads, (Z, Y, X) a grid whose axis 0 is the one along which planes are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import logit

from segwright.core.boxes import Box, box_shape, crop, nonzero_box
from segwright.core.files.json_documents import parse_document, write_checked_json
from segwright.core.files.names import below
from segwright.data.labels import Labels
from segwright.evaluation.calibration import CalibrationStats, CalibrationStatsCollector
from segwright.inference.predictor import Predictor
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.window.stitching import Planes
from segwright.preprocessing.pipeline import PredictionInput

FOLDER: Final = "observed"
"""Folder of the documents beside the label maps."""

_MAX_VOXELS = 2**15
"""Most voxels of one case whose probabilities are compared with the truth."""
_MARGIN = 8
"""Voxels around the true structures that are compared too; further away every model is certain and right."""
_MIN_PROBABILITY = 1e-7
"""Probabilities are clipped to [this, 1 - this], since float16 files contain 0 and 1."""


class CaseStats(BaseModel):
    """Statistics of one predicted case; `mirror_axes` are those of each model that predicted it."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: Literal[1] = 1
    observation: Observation
    calibration: CalibrationStats | None = Field(alias="reliability")
    mirror_axes: tuple[tuple[int, ...], ...]

    @classmethod
    def load(cls, folder: Path, case: str) -> CaseStats:
        """Read the document of a case beside its label map.

        Raises:
            SegwrightError: it is missing, not JSON, or lacks a key.
        """
        return parse_document(cls, stats_file(folder, case))

    def save(self, folder: Path, case: str) -> None:
        """Write the document of a case beside its label map."""
        write_checked_json(stats_file(folder, case), self.model_dump(mode="json", by_alias=True))


def stats_file(folder: Path, case: str) -> Path:
    """Return the path of the document of a case whose label map is in `folder`."""
    return below(folder, FOLDER, f"{case}.json")


@dataclass(frozen=True, slots=True)
class VoxelSampler:
    """Samples voxels on a regular lattice around the true structures of a label map."""

    truth: npt.NDArray[Any]  # (Z, Y, X)
    box: Box
    step: int

    @classmethod
    def around(cls, truth: npt.NDArray[Any], labels: Labels) -> VoxelSampler | None:
        """Return the lattice of a label map (Z, Y, X); None where it has no structure."""
        structures = np.isin(truth, labels.foreground_labels)
        if not structures.any():
            return None
        box = tuple(
            (max(low - _MARGIN, 0), min(high + _MARGIN, size))
            for (low, high), size in zip(nonzero_box(structures), truth.shape, strict=True)
        )
        return cls(truth, box, max(1, math.ceil((math.prod(box_shape(box)) / _MAX_VOXELS) ** (1 / 3))))

    def planes(self, start: int, stop: int) -> range:
        """Return the planes of the lattice in [start, stop)."""
        low, high = self.box[0]
        skipped = max(0, math.ceil((start - low) / self.step))
        return range(low + skipped * self.step, min(high, stop), self.step)

    def sample(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the lattice's voxels (..., N) of a plane (..., Y, X)."""
        cut = crop(plane, self.box[1:])[..., :: self.step, :: self.step]
        voxels: npt.NDArray[Any] = cut.reshape(*plane.shape[:-2], -1)
        return voxels


class CaseStatsCollector:
    """Collects statistics of a preprocessed case while it is predicted.

    Args:
        predictor: predicts the case.
        prepared: the case.
        truth: its label map on the network's grid.
    """

    def __init__(self, predictor: Predictor, prepared: PredictionInput, truth: npt.NDArray[Any]) -> None:
        self._mirror_axes = predictor.window.mirror_axes
        self._heads = predictor.labels.num_heads
        self._observer = predictor.observer(prepared)
        self._sampler = VoxelSampler.around(np.moveaxis(truth, predictor.axis_of(prepared.image), 0), predictor.labels)
        self._calibration = CalibrationStatsCollector(predictor.labels)

    def collect(self, planes: Iterable[Planes]) -> Iterator[Planes]:
        """Add each part to the statistics and yield it, without the extra disagreement head if there is one."""
        for part in self._observer.watch(planes):
            if self._sampler is not None:
                for plane in self._sampler.planes(part.start, part.stop):
                    logits = part.logits[: self._heads, plane - part.start].numpy()
                    self._calibration.add(
                        self._sampler.sample(logits), self._sampler.sample(self._sampler.truth[plane])
                    )
            yield part

    def stats(self) -> CaseStats:
        """Return the statistics, after all planes were yielded."""
        return CaseStats(
            observation=self._observer.observation(),
            calibration=self._calibration.stats(),
            mirror_axes=(self._mirror_axes,),
        )


def mean_calibration_stats(arrays: Sequence[Any], truth: npt.NDArray[Any], labels: Labels) -> CalibrationStats | None:
    """Return calibration statistics of the ensemble's mean probabilities; None if `truth` has no structure.

    Args:
        arrays: one probability array (H, Z, Y, X) per model, read from disk plane by plane.
        truth: label map (Z, Y, X).
        labels: of the models.
    """
    collector, sampler = CalibrationStatsCollector(labels), VoxelSampler.around(truth, labels)
    for plane in () if sampler is None else sampler.planes(0, len(truth)):
        assert sampler is not None
        parts = [sampler.sample(np.asarray(array[:, plane], dtype=np.float32)) for array in arrays]
        mean = np.clip(np.mean(parts, axis=0), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
        collector.add(logit(mean) if labels.has_regions else np.log(mean), sampler.sample(truth[plane]))
    return collector.stats()
