"""What is seen of held-out cases while they are predicted, and how it meets the true labels: a document for each case.

Quality and calibration of a selected model are fitted on them, so no probabilities need to be kept.
Legend: H heads, (Z, Y, X) a grid whose axis 0 is the one that planes come along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.special import logit

from segwright.core.boxes import Box, box_shape, crop, nonzero_box
from segwright.core.files.atomic_io import parse_document, write_checked_json
from segwright.core.files.names import below
from segwright.data.labels import Labels
from segwright.evaluation.calibration import Reliabilities, Reliability
from segwright.inference.predictor import Predictor
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.window.stitching import Planes
from segwright.preprocessing.pipeline import PredictionInput

FOLDER: Final = "observed"
"""Beside the label maps."""

_MOST_VOXELS = 2**15
"""Of one case whose probabilities are judged."""
_MARGIN = 8
"""Voxels around the true structures that are judged with them: far away every model is sure, and right."""
_LEAST = 1e-7
"""Probabilities are taken to be this far from 0 and 1 at least: float16 files hold 0 and 1 themselves."""


class Observed(BaseModel):
    """One case; the mirror axes are those of each model that predicted it."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    observation: Observation
    reliability: Reliability | None
    mirror_axes: tuple[tuple[int, ...], ...]

    @classmethod
    def load(cls, folder: Path, case: str) -> Observed:
        """Read the document of a case beside its label map.

        Raises:
            SegwrightError: missing, not JSON, or keys missing; named.
        """
        return parse_document(cls, observed_file(folder, case))

    def save(self, folder: Path, case: str) -> None:
        """Write it, atomically."""
        write_checked_json(observed_file(folder, case), self.model_dump(mode="json"))


def observed_file(folder: Path, case: str) -> Path:
    """Return the document of a case whose label map is in `folder`."""
    return below(folder, FOLDER, f"{case}.json")


@dataclass(frozen=True, slots=True)
class Sites:
    """A lattice of voxels around the true structures of a label map."""

    truth: npt.NDArray[Any]  # (Z, Y, X)
    box: Box
    step: int

    @classmethod
    def around(cls, truth: npt.NDArray[Any], labels: Labels) -> Sites | None:
        """Return the lattice of a label map (Z, Y, X); None where it has no structure."""
        structures = np.isin(truth, labels.foreground_labels)
        if not structures.any():
            return None
        box = tuple(
            (max(low - _MARGIN, 0), min(high + _MARGIN, size))
            for (low, high), size in zip(nonzero_box(structures), truth.shape, strict=True)
        )
        return cls(truth, box, max(1, math.ceil((math.prod(box_shape(box)) / _MOST_VOXELS) ** (1 / 3))))

    def planes(self, start: int, stop: int) -> range:
        """Return the planes of the lattice in [start, stop)."""
        low, high = self.box[0]
        behind = max(0, math.ceil((start - low) / self.step))
        return range(low + behind * self.step, min(high, stop), self.step)

    def of_plane(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the lattice's voxels (..., N) of a plane (..., Y, X)."""
        cut = crop(plane, self.box[1:])[..., :: self.step, :: self.step]
        found: npt.NDArray[Any] = cut.reshape(*plane.shape[:-2], -1)
        return found


class Witness:
    """Looks at the planes of a preprocessed case whose true labels (Z, Y, X) are known on the network's grid."""

    def __init__(self, predictor: Predictor, prepared: PredictionInput, truth: npt.NDArray[Any]) -> None:
        self._mirror_axes = predictor.window.mirror_axes
        self._heads = predictor.labels.num_heads
        self._observer = predictor.observer(prepared)
        self._sites = Sites.around(np.moveaxis(truth, predictor.axis_of(prepared.image), 0), predictor.labels)
        self._found = Reliabilities(predictor.labels)

    def watch(self, planes: Iterable[Planes]) -> Iterator[Planes]:
        """Pass the planes on, without their disagreement."""
        for part in self._observer.watch(planes):
            if self._sites is not None:
                for plane in self._sites.planes(part.start, part.stop):
                    logits = part.logits[: self._heads, plane - part.start].numpy()
                    self._found.add(self._sites.of_plane(logits), self._sites.of_plane(self._sites.truth[plane]))
            yield part

    def observed(self) -> Observed:
        """Return what was seen, after the last planes have passed."""
        return Observed(
            observation=self._observer.observation(),
            reliability=self._found.reliability(),
            mirror_axes=(self._mirror_axes,),
        )


def judge_mean(arrays: Sequence[Any], truth: npt.NDArray[Any], labels: Labels) -> Reliability | None:
    """Return what a case says about the mean of probabilities (H, Z, Y, X), arrays on disk; truth is (Z, Y, X)."""
    found, sites = Reliabilities(labels), Sites.around(truth, labels)
    for plane in () if sites is None else sites.planes(0, len(truth)):
        assert sites is not None
        parts = [sites.of_plane(np.asarray(array[:, plane], dtype=np.float32)) for array in arrays]
        mean = np.clip(np.mean(parts, axis=0), _LEAST, 1 - _LEAST)
        found.add(logit(mean) if labels.has_regions else np.log(mean), sites.of_plane(truth[plane]))
    return found.reliability()
