"""Choose target spacing and axis order; compute the median image shape (nnU-Net behaviour 5.3-5.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwright.core.errors import PlanError
from segwright.data.fingerprint import Fingerprint
from segwright.planning.presets import ANISOTROPY

_COARSE_PERCENTILE = 10
"""Percentile of the coarse axis' spacings that is its target (nnU-Net paper, blueprint)."""
_COARSE_MARGIN = 1e-5
"""Keeps the coarse axis the coarsest, to avoid ties in the axis order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpacing:
    """Spacing to which images are resampled, in the reader's axis order, and its reason."""

    value: tuple[float, ...]
    reason: str


def target_spacing(fingerprint: Fingerprint, override: tuple[float, ...] | None = None) -> TargetSpacing:
    """Choose the full-resolution target: the median spacing, but a finer coarse axis for thick slices.

    nnU-Net behaviour 5.3.

    Args:
        fingerprint: Spacings and cropped shapes of all cases.
        override: Spacing to use instead, in the reader's axis order.

    Raises:
        PlanError: `override` is not three positive numbers.
    """
    if override is not None:
        if len(override) != len(fingerprint.spacings[0]) or not all(value > 0 for value in override):
            raise PlanError(
                f"spacing {list(override)}: expected {len(fingerprint.spacings[0])} positive numbers, in the order of"
                " the image's axes as read (slices first); correct --spacing"
            )
        return TargetSpacing(value=tuple(float(value) for value in override), reason="as requested")
    spacings = np.asarray(fingerprint.spacings, dtype=np.float64)  # (cases, 3)
    target = np.median(spacings, axis=0)
    shape = np.median(np.asarray(fingerprint.shapes_after_crop, dtype=np.float64), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    finer = float(target[others].max())
    thick = bool(target[worst] > ANISOTROPY * finer)
    few = bool(shape[worst] * ANISOTROPY < shape[others].min())
    if not (thick and few):
        return TargetSpacing(value=tuple(target.tolist()), reason=_plain_reason(worst, thick=thick, few=few))
    percentile = float(np.percentile(spacings[:, worst], _COARSE_PERCENTILE))
    chosen = percentile if percentile >= finer else finer + _COARSE_MARGIN
    target[worst] = chosen
    how = (
        f"the {_COARSE_PERCENTILE}th percentile of its spacings"
        if percentile >= finer
        else f"just above the others', since the {_COARSE_PERCENTILE}th percentile {percentile:.6g} would be finer"
    )
    return TargetSpacing(
        value=tuple(target.tolist()),
        reason=f"axis {worst} has thick slices (over {ANISOTROPY} times coarser, and"
        f" {shape[worst]:g} voxels against {shape[others].min():g}), so it gets {how}; the other axes get the median",
    )


def transposition(spacing: tuple[float, ...], *, suppress: bool = False) -> tuple[int, ...]:
    """Return the axis order with the coarsest axis first (the first one on ties); nnU-Net behaviour 5.4."""
    axes = range(len(spacing))
    if suppress:
        return tuple(axes)
    coarsest = max(axes, key=lambda axis: (spacing[axis], -axis))
    return (coarsest, *(axis for axis in axes if axis != coarsest))


def median_shape_at(fingerprint: Fingerprint, spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Return the per-axis median of the cropped shapes resampled to `spacing`; may hold halves.

    nnU-Net behaviour 5.5.
    """
    resampled = [
        [round(old / new * size) for old, new, size in zip(case_spacing, spacing, shape, strict=True)]
        for case_spacing, shape in zip(fingerprint.spacings, fingerprint.shapes_after_crop, strict=True)
    ]
    return _median(np.asarray(resampled, dtype=np.float64))


def original_medians(fingerprint: Fingerprint) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the median spacing and the rounded median cropped shape of the original images."""
    spacing = _median(np.asarray(fingerprint.spacings, dtype=np.float64))
    shape = _median(np.asarray(fingerprint.shapes_after_crop, dtype=np.float64))
    return spacing, tuple(round(size) for size in shape)


def _median(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.median(values, axis=0))


def _plain_reason(worst: int, *, thick: bool, few: bool) -> str:
    spacing = f"{'over' if thick else 'at most'} {ANISOTROPY} times the others' spacing"
    count = f"{'less' if few else 'no less'} than 1/{ANISOTROPY} of their voxels"
    return f"the median of all cases; no thick slices: axis {worst} has {spacing} and {count}"
