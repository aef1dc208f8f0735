"""Uncertainty of a prediction: voxel maps and statistics of the case, computed as planes of logits arrive.

Averaged logits are a logarithmic pool of the folds and mirrored views: softmax(mean z_i) is the normalised geometric
mean of their probabilities. How far they are from it is their mean Kullback-Leibler divergence, for which Heskes
(Selecting weighting factors in logarithmic opinion pools, NIPS 1997) has the closed form

    mean_i KL(pool || p_i) = mean_i G(z_i) - G(mean_i z_i),   G(z) = log sum_c exp(z_c),

with a sum of softplus for regions. It needs the mean of one number per voxel beside that of the logits, so disagreement
costs one more head, whatever the number of classes, folds and views; `log_partition` computes G.

Legend: H heads, (Z, Y, X) a grid, N voxels of a few planes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from segwright.core.files.names import below
from segwright.data.labels import Labels
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.reliability.case_statistics import Observation
from segwright.inference.window.stitching import Planes

MAPS: Final = ("entropy", "disagreement")
FOLDER: Final = "uncertainty"
"""Maps lie apart from the label maps, whose file ending they may share."""

_ELEMENTS_AT_ONCE = 2**20
"""Logits evaluated together: few enough for the cache. Larger planes are subsampled on a lattice."""

Floats = npt.NDArray[np.float32]


class Observer:
    """Collects the statistics of one case from its planes of logits.

    Args:
        labels: of the model.
        provenance: of the case.
        shape: of the network's grid.
    """

    def __init__(self, labels: Labels, provenance: Provenance, shape: tuple[int, ...]) -> None:
        self._labels = labels
        extent = math.prod(provenance.shape_after_cropping) * math.prod(provenance.spacing)
        self._voxel_mm3 = extent / math.prod(shape)
        self._predicted = np.zeros(labels.num_heads)
        self._probable = np.zeros(labels.num_heads)
        self._certain = np.zeros(labels.num_heads)
        self._foreground = 0.0
        self._entropy = 0.0
        self._disagreement: float | None = None

    def watch(self, planes: Iterable[Planes], *, keep: bool = False) -> Iterator[Planes]:
        """Yield the planes and add up their statistics; `keep` yields the disagreement head too, if there is one."""
        heads = self._labels.num_heads
        for part in planes:
            if len(part.logits) in (heads, heads + 1):  # another number raises an error where labels are decided
                self._add(part.logits)
            yield part if keep or len(part.logits) <= heads else replace(part, logits=part.logits[:heads])

    def observation(self) -> Observation:
        """Return the statistics, after the last planes."""
        first = 0 if self._labels.has_regions else 1
        sums = self._predicted[first:] + self._probable[first:]
        certain = self._certain[first:]
        return Observation(
            volumes=tuple((self._predicted[first:] * self._voxel_mm3).tolist()),
            overlaps=tuple(
                float(2 * part / whole) if whole >= 1 else None for part, whole in zip(certain, sums, strict=True)
            ),
            entropy=_relative(self._entropy, self._foreground),
            disagreement=None if self._disagreement is None else _relative(self._disagreement, self._foreground),
        )

    def _add(self, logits: Any) -> None:
        """Add up a few planes of logits (H or H + 1, planes, Y, X)."""
        heads = self._labels.num_heads
        size = heads * logits.shape[2] * logits.shape[3]
        step = max(1, math.isqrt((size - 1) // _ELEMENTS_AT_ONCE) + 1)
        depth = max(1, _ELEMENTS_AT_ONCE // size)
        for start in range(0, logits.shape[1], depth):
            planes = logits[:, start : start + depth]
            part = np.asarray(planes[:, :, ::step, ::step]).reshape(len(planes), -1)
            share = math.prod(planes.shape[1:]) / part.shape[1]
            (self._add_regions if self._labels.has_regions else self._add_labels)(part[:heads], share)
            if len(part) > heads:
                self._disagreement = (self._disagreement or 0.0) + share * float(part[heads].sum(dtype=np.float64))

    def _add_labels(self, logits: Floats, share: float) -> None:
        best = logits.max(axis=0)
        below = logits - best
        powers = np.exp(below)
        totals = powers.sum(axis=0)
        largest = 1 / totals  # probability of the label
        self._probable += share * (powers @ largest)
        is_best = below == 0
        self._predicted += share * is_best.sum(axis=1)
        self._certain += share * (is_best.astype(np.float32) @ largest)
        self._foreground += share * float(is_best.shape[1] - is_best[0].sum())
        powers *= below
        self._entropy += share * float(np.log(totals).sum(dtype=np.float64) - powers.sum(axis=0) @ largest)

    def _add_regions(self, logits: Floats, share: float) -> None:
        values = scipy.special.expit(logits)
        is_in = logits > 0
        self._probable += share * values.sum(axis=1)
        self._predicted += share * is_in.sum(axis=1)
        self._certain += share * (values * is_in).sum(axis=1)
        self._foreground += share * float(is_in.any(axis=0).sum())
        entropy = scipy.special.entr(values) + scipy.special.entr(1 - values)
        self._entropy += share * float(entropy.sum(dtype=np.float64))


def _relative(total: float, foreground: float) -> float:
    """Return total / (total + foreground), with at least one foreground voxel."""
    total = max(total, 0.0)
    return total / (total + max(foreground, 1.0))


def entropy_map(probabilities: Floats, labels: Labels) -> Floats:
    """Return the entropy of each voxel (*S), 0 to 1; 1 if all labels (or in and out of all regions) are equally likely.

    Args:
        probabilities: (H, *S).
        labels: whose heads they are.
    """
    found: Floats = scipy.special.entr(probabilities).sum(axis=0, dtype=np.float32)
    if labels.has_regions:
        found += scipy.special.entr(1 - probabilities).sum(axis=0, dtype=np.float32)
    found /= largest_entropy(labels)
    return np.clip(found, 0, 1, out=found)


def largest_entropy(labels: Labels) -> float:
    """Return the largest possible entropy of a voxel, in nats."""
    return labels.num_heads * math.log(2) if labels.has_regions else math.log(labels.num_heads)


def disagreement_map(divergence: Floats) -> Floats:
    """Map a divergence in nats (*S) to a number from 0 to 1: 1 - exp(-divergence)."""
    found: Floats = -np.expm1(-np.maximum(divergence, 0))
    return found


def pooled_maps(
    arrays: Sequence[Any], disagreements: Sequence[Any], labels: Labels, start: int, stop: int
) -> tuple[Floats, Floats]:
    """Return both maps (stop - start, Y, X) of planes [start, stop) of several models, one head at a time.

    The models' probabilities are averaged. Their disagreement is the entropy of the mean minus the mean entropy, plus
    the mean disagreement within the models.

    Args:
        arrays: probabilities (H, Z, Y, X) of each model.
        disagreements: its disagreement map (Z, Y, X).
        labels: of the heads.
        start: first plane.
        stop: behind the last one.
    """
    joint = np.zeros((stop - start, *arrays[0].shape[2:]), np.float32)
    separate = np.zeros_like(joint)
    for head in range(arrays[0].shape[0]):
        each = [np.asarray(array[head, start:stop], dtype=np.float32) for array in arrays]
        sides = (each, [1 - values for values in each]) if labels.has_regions else (each,)
        for side in sides:
            joint += scipy.special.entr(np.mean(side, axis=0))
            separate += np.mean([scipy.special.entr(values) for values in side], axis=0)
    within = np.mean(
        [-np.log1p(-np.minimum(disagreement[start:stop], 1 - 1e-6)) for disagreement in disagreements], axis=0
    )
    entropy: Floats = np.clip(joint / np.float32(largest_entropy(labels)), 0, 1)
    return entropy, disagreement_map(np.maximum(joint - separate, 0) + within)


def map_files(folder: Path, case: str) -> tuple[Path, ...]:
    """Return the files of the maps of a case."""
    return tuple(below(folder, FOLDER, f"{case}_{name}.nii.gz") for name in MAPS)


class Uncertainty(NamedTuple):
    """Maps of one case on its own grid, axes as the reader gave them, each from 0 to 1."""

    entropy: Floats  # (Z, Y, X)
    disagreement: Floats  # (Z, Y, X)
