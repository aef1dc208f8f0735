"""From logits on the network's grid to labels and probabilities on the case's own grid, slab by slab.

Classes times original grid is held only where probabilities are asked for. Legend: H heads, (Z, Y, X) a grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segwright.core.arrays import box_slices
from segwright.core.documents import atomic_path, write_json
from segwright.core.errors import PlanError
from segwright.data.images import write_labels
from segwright.data.labels import Labels
from segwright.data.plan import Configuration
from segwright.data.store import Provenance
from segwright.preprocessing.pipeline import full_spacing
from segwright.preprocessing.resampling import LogitResampler

LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

SLAB_BYTES = 64 * 2**20
"""Resampled logits held at once; small enough to stay far below the label map of a large case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Logits of the planes [start, stop) of the cropped case, on its own spacing."""

    start: int
    stop: int
    logits: npt.NDArray[np.float32]  # (H, stop - start, Y, X)


def resampled_slabs(
    logits: Tensor, provenance: Provenance, configuration: Configuration, *, slab_bytes: int = SLAB_BYTES
) -> Iterator[Slab]:
    """Yield `logits` (H, *S) on the grid of the cropped case, a few planes at a time."""
    shape = tuple(provenance.shape_after_cropping)
    spacing = tuple(provenance.spacing)
    resampler = LogitResampler(
        tuple(logits.shape[1:]),
        shape,
        full_spacing(configuration, spacing),
        spacing,
        configuration.resampling_fn_probabilities,
        configuration.resampling_fn_probabilities_kwargs,
    )
    if resampler.shape != shape:
        raise PlanError(
            f"resampling_fn_probabilities '{configuration.resampling_fn_probabilities}' gives shape {resampler.shape}, "
            f"the case has {shape}; in the plan, use the counterpart of resampling_fn_data"
        )
    bytes_per_plane = 4 * logits.shape[0] * shape[1] * shape[2]
    planes = max(1, slab_bytes // bytes_per_plane)
    for start in range(0, shape[0], planes):
        stop = min(start + planes, shape[0])
        slab = resampler.slab(logits, start, stop)
        yield Slab(start=start, stop=stop, logits=torch.as_tensor(slab).numpy())


def logits_to_labels(
    logits: Tensor,
    provenance: Provenance,
    configuration: Configuration,
    labels: Labels,
    *,
    slab_bytes: int = SLAB_BYTES,
) -> LabelMap:
    """Return the label map of `logits` (H, *S) in the reader's axis order (nnU-Net 2.8.1 behaviour, spec B 4.6).

    Background fills what was cropped off. The result does not depend on `slab_bytes`.
    """
    whole = np.zeros(tuple(provenance.shape_before_cropping), dtype=labels.dtype)
    inside = whole[box_slices(provenance.box)]
    for slab in resampled_slabs(logits, provenance, configuration, slab_bytes=slab_bytes):
        inside[slab.start : slab.stop] = labels.decide(slab.logits, logits=True)
    return np.ascontiguousarray(whole.transpose(provenance.transpose_backward))


def logits_to_probabilities(
    logits: Tensor, provenance: Provenance, configuration: Configuration, labels: Labels
) -> npt.NDArray[np.float32]:
    """Return the probabilities (H, Z, Y, X) of `logits` (H, *S) in the reader's axis order (spec A 7.5, B 4.6).

    Outside the crop every probability is 0, but background's is 1 where it has a head of its own.
    """
    whole = np.zeros((len(logits), *provenance.shape_before_cropping), dtype=np.float32)
    if not labels.has_regions:
        whole[0] = 1
    inside = whole[box_slices(provenance.box)]
    for slab in resampled_slabs(logits, provenance, configuration):
        inside[:, slab.start : slab.stop] = labels.probabilities(slab.logits)
    order = (0, *(axis + 1 for axis in provenance.transpose_backward))
    return np.ascontiguousarray(whole.transpose(order))


def save_labels(label_map: LabelMap, path: Path, provenance: Provenance, reader: str) -> None:
    """Write a label map in the format and geometry of the images it was predicted from, atomically."""
    write_labels(label_map, path, provenance.properties, reader)


def save_probabilities(
    probabilities: npt.NDArray[np.float32], path: Path, provenance: Provenance, document: dict[str, Any]
) -> None:
    """Write `path` (`<case>.npz`, key `probabilities`, as nnU-Net) and beside it `<case>.provenance.json`.

    The JSON takes the place of nnU-Net's pickled properties; `document` is added to it. The archive is written last,
    so that where it is, the JSON is too.
    """
    write_json(path.with_name(f"{path.stem}.provenance.json"), {**document, "provenance": provenance.to_json()})
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, probabilities=probabilities)
