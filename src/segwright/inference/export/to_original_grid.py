"""Resample planes of logits from the network's grid to slabs on the case's original grid, as they arrive.

Legend: H heads, (Z, Y, X) a grid whose axis 0 is the axis along which planes are predicted, any axis of the case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import box_slices
from segwright.core.errors import PlanError
from segwright.data.labels import Labels
from segwright.data.plan import Configuration
from segwright.data.preprocessed.provenance import Provenance
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tiling import to_front
from segwright.preprocessing.pipeline import full_spacing
from segwright.preprocessing.resampling import VolumeResampler, operators_of

SLAB_BYTES = 4 * 2**20
"""Resampled logits per thread: fits the cache (14 heads on 150x400x400 took 0.6 s with 8 MiB and 1.3 s with 128 MiB on
2 cores), and is small compared with any label map."""

_HEADS_AT_ONCE = 4
"""Heads that are resampled at once: with fewer there are more calls, with more a slab has few planes (measured)."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Planes [start, stop) of the cropped case, not yet resampled."""

    start: int
    stop: int
    source: Planes
    resampler: VolumeResampler
    slab_bytes: int

    def scores(self, first: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Return logits (H, stop - start, Y, X) on the case's spacing, of heads [first, stop), by default of all."""
        logits = self.source.logits[first:stop]
        return np.asarray(self.resampler.slab(logits, self.start, self.stop, offset=self.source.start))

    def decided(self, labels: Labels) -> npt.NDArray[Any]:
        """Decide the label map (stop - start, Y, X), a few heads at a time (nnU-Net behaviour 4.4)."""
        shape = (self.stop - self.start, *self.resampler.shape[1:])
        group = max(1, self.slab_bytes // (4 * int(np.prod(shape))))
        groups = (self.scores(first, first + group) for first in range(0, labels.num_heads, group))
        return labels.decide_one_by_one(chain.from_iterable(groups), shape, logits=True)


class InverseResampling:
    """Resampling from the network's grid to the cropped case, with `axis` in front of the other axes.

    Args:
        shape: of the network's grid, axes as in the plan.
        provenance: of the case.
        configuration: gives the spacing and the resampling of logits.
        axis: along which planes are predicted.
        slab_bytes: largest size of a resampled slab; the result does not depend on it.

    Raises:
        PlanError: the plan's resampling of logits does not give the case's shape.
    """

    def __init__(
        self,
        shape: Sequence[int],
        provenance: Provenance,
        configuration: Configuration,
        *,
        axis: int = 0,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        self.provenance = provenance
        self.axis = axis
        self.slab_bytes = slab_bytes
        spacing = tuple(provenance.spacing)
        cropped = to_front(tuple(provenance.shape_after_cropping), axis)
        self.resampler = VolumeResampler(
            to_front(tuple(shape), axis),
            cropped,
            to_front(full_spacing(configuration, spacing), axis),
            to_front(spacing, axis),
            configuration.resampling_fn_probabilities,
            configuration.resampling_fn_probabilities_kwargs,
        )
        if self.resampler.shape != cropped:
            raise PlanError(
                f"resampling_fn_probabilities '{configuration.resampling_fn_probabilities}' gives shape "
                f"{tuple(shape)}, the case has {tuple(provenance.shape_after_cropping)}; in the plan, use the "
                "counterpart of resampling_fn_data"
            )

    def slabs(self, planes: Iterable[Planes], *, heads_at_once: int = _HEADS_AT_ONCE) -> Iterator[Slab]:
        """Yield each slab once the planes that it needs are there; slabs are in order, without a gap.

        Args:
            planes: in order, without a gap, (H, planes, Y, X).
            heads_at_once: number of heads of a slab that are resampled at once.
        """
        if self.resampler.needs_all_planes:
            planes = _joined(list(planes), 0)
        shape = self.resampler.shape
        depth = max(1, self.slab_bytes // (4 * heads_at_once * shape[1] * shape[2]))
        parts: list[Planes] = []
        start = 0
        for part in planes:
            parts.append(part)
            while start < shape[0]:
                stop = min(start + depth, shape[0])
                low, high = self.resampler.inputs(start, stop)
                if high > part.stop:
                    break
                parts = _joined(parts, low)
                yield Slab(start, stop, parts[0], self.resampler, self.slab_bytes)
                start = stop
        assert start == shape[0], "planes are missing"

    @property
    def case_shape(self) -> tuple[int, ...]:
        """Shape of the whole case in the reader's axis order."""
        provenance = self.provenance
        return tuple(provenance.shape_before_cropping[axis] for axis in provenance.transpose_backward)

    def inside(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the view of `array` (..., *case_shape) that the slabs fill, with the axes of the planes."""
        lead = array.ndim - len(self.case_shape)
        planned = array.transpose(*range(lead), *(lead + axis for axis in self.provenance.transpose_forward))
        rolled = planned.transpose(*range(lead), *to_front(range(lead, array.ndim), self.axis))
        view: npt.NDArray[Any] = rolled[box_slices(to_front(self.provenance.box, self.axis))]
        return view


def _joined(parts: list[Planes], low: int) -> list[Planes]:
    """Return one part with everything from plane `low` on; a single one is not copied."""
    needed = [part for part in parts if part.stop > low]
    if len(needed) == 1:
        return needed
    arrays = [part.logits[:, max(low - part.start, 0) :] for part in needed]
    logits = operators_of(arrays[0]).concatenate(arrays, 1)
    return [Planes(start=max(low, needed[0].start), stop=needed[-1].stop, logits=logits)]
