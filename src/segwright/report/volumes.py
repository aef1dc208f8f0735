"""Pack volumes for the report's viewer: reoriented, cropped and downsampled to a size limit.

A packed volume is zlib-compressed bytes: C channels, ground truth, prediction, each (Z, Y, X) uint8.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from segwright.core.boxes import Box, crop, nonzero_box
from segwright.report.case_images import CaseImages
from segwright.report.colours import GREY_PERCENTILES, label_positions, tint
from segwright.report.html import png_base64

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")

MAX_CHANNELS = 4
_PERCENTILE_VOXELS = 500_000
"""Voxels sampled for the percentiles of the intensity window."""

_CT_MARGIN = 0.5
"""Fraction of the foreground's intensity range added on both sides of the window of a CT."""

_UPRIGHT = ("SI", "PA", "LR")
"""Axes of the viewer: increasing index is superior, posterior, left."""
_MARGIN = 0.25
"""Margin around the labels of a cropped image, as a fraction of their box."""
_MIN_MARGIN_VOXELS = 8
_MAX_FACTOR = 16
_MAX_COMPRESSION = 4
"""Volumes of more than this many times the limit are not tried, since zlib rarely shrinks them that far."""
_THUMBNAIL = 168
_OPACITY = 0.55


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCase:
    """A case for the viewer.

    Attributes:
        shape: shape of the packed arrays.
        spacing: their voxel spacing.
        planes: name of the plane perpendicular to each axis.
        corners: direction at the start and end of each axis; empty strings if unknown.
        is_upright: whether the first axis points up, so that it is drawn from below.
        channels: number of channels.
        start: initial voxel, where the prediction is worst.
        payload: base64 of the compressed bytes.
        thumbnail: base64 of a PNG of the first slice.
        remark: differences between volume and file.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    planes: tuple[str, str, str]
    corners: tuple[tuple[str, str], ...]
    is_upright: bool
    channels: int
    start: tuple[int, int, int]
    payload: str
    thumbnail: str
    remark: str


def pack(
    case: CaseImages, labels: Sequence[int], *, max_bytes: int, windows: Sequence[tuple[float, float] | None]
) -> PackedCase:
    """Pack a case into at most `max_bytes` of compressed voxels.

    Args:
        case: images (C, *S) with three spatial axes.
        labels: foreground values in the order of their colours; stored as 1, 2, ...
        max_bytes: limit of the payload before base64.
        windows: intensities of black and white per channel; None: percentiles of the shown volume.
    """
    oriented = upright(case)
    reference, prediction = (_positions(array, labels) for array in (oriented.reference, oriented.prediction))
    grey = oriented.image[:MAX_CHANNELS]
    for box, factors in _attempts(reference, prediction, oriented.spacing):
        shape = tuple(ceil((stop - start) / factor) for (start, stop), factor in zip(box, factors, strict=True))
        if np.prod(shape) * len(grey) > _MAX_COMPRESSION * max_bytes and max(factors) < _MAX_FACTOR:
            continue
        parts = [
            *(
                quantise(_averaged(crop(channel, box), factors), window)
                for channel, window in zip(grey, windows, strict=False)
            ),
            _picked(crop(reference, box), factors),
            _picked(crop(prediction, box), factors),
        ]
        data = zlib.compress(np.stack(parts).tobytes(), 9)
        if len(data) <= max_bytes or max(factors) >= _MAX_FACTOR:
            break
    spacing = tuple(extent * factor for extent, factor in zip(oriented.spacing, factors, strict=True))
    start = most_wrong(parts[-2], parts[-1])
    is_upright = bool(oriented.directions)
    return PackedCase(
        shape=_three(parts[0].shape),
        spacing=_three(spacing),
        planes=("axial", "coronal", "sagittal") if is_upright else ("axis 0", "axis 1", "axis 2"),
        corners=(("I", "S"), ("A", "P"), ("R", "L")) if is_upright else (("", ""),) * 3,
        is_upright=is_upright,
        channels=len(parts) - 2,
        start=start,
        payload=b64encode(data).decode("ascii"),
        thumbnail=_thumbnail(parts[0], parts[-2], parts[-1], start[0], spacing),
        remark=_remark(case, box, reference.shape, factors),
    )


def upright(case: CaseImages) -> CaseImages:
    """Reorient a case to SPL (superior, posterior, left) by permuting and flipping axes.

    A case of unknown orientation is returned unchanged.
    """
    if not case.directions:
        return case
    order = [next(axis for axis, letter in enumerate(case.directions) if letter in pair) for pair in _UPRIGHT]
    mirrored = tuple(
        position
        for position, (axis, pair) in enumerate(zip(order, _UPRIGHT, strict=True))
        if case.directions[axis] != pair[0]
    )

    def reorient(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        leading = array.ndim - len(order)
        moved = array.transpose(*range(leading), *(axis + leading for axis in order))
        return np.flip(moved, tuple(axis + leading for axis in mirrored))

    return replace(
        case,
        image=reorient(case.image),
        reference=reorient(case.reference),
        prediction=reorient(case.prediction),
        spacing=tuple(case.spacing[axis] for axis in order),
        directions="SPL",
    )


def quantise(array: npt.NDArray[np.floating[Any]], window: tuple[float, float] | None) -> Bytes:
    """Scale intensities to bytes, 0 and 255 at the ends of the window (percentiles of the array by default)."""
    low, high = intensity_window(array) if window is None else window
    scale = 255 / max(high - low, 1e-12)
    quantised: Bytes = np.rint(np.clip((array - low) * scale, 0, 255)).astype(np.uint8)
    return quantised


def intensity_window(array: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return the intensities of black and white: percentiles of an array, of a sample if it is large."""
    step = max(1, array.size // _PERCENTILE_VOXELS)
    low, high = np.percentile(array.ravel()[::step], GREY_PERCENTILES)
    return float(low), float(high)


def foreground_window(low: float, high: float) -> tuple[float, float]:
    """Return the window of a CT for percentiles of its foreground: wider, to keep the surroundings visible."""
    margin = _CT_MARGIN * (high - low)
    return low - margin, high + margin


def most_wrong(reference: Bytes, prediction: Bytes) -> tuple[int, int, int]:
    """Return a voxel in the slice with most wrong voxels, or with most labelled voxels if none is wrong."""
    shown = reference != prediction
    if not shown.any():
        shown = reference > 0
    if not shown.any():
        return _three([extent // 2 for extent in reference.shape])
    index = int(shown.sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(shown[index])
    nearest = int(np.hypot(rows - rows.mean(), columns - columns.mean()).argmin())
    return index, int(rows[nearest]), int(columns[nearest])


def box_around(mask: npt.NDArray[np.bool_]) -> Box:
    """Return the box of a mask with a margin, or the whole array if the mask is empty."""
    if not mask.any():
        return tuple((0, extent) for extent in mask.shape)
    box = []
    for (start, stop), extent in zip(nonzero_box(mask), mask.shape, strict=True):
        margin = max(_MIN_MARGIN_VOXELS, round((stop - start) * _MARGIN))
        box.append((max(start - margin, 0), min(stop + margin, extent)))
    return tuple(box)


def _attempts(reference: Bytes, prediction: Bytes, spacing: Sequence[float]) -> Iterator[tuple[Box, tuple[int, ...]]]:
    """Yield ever smaller crops: the whole image, a box around the labels, and that box with ever coarser voxels."""
    whole: Box = tuple((0, extent) for extent in reference.shape)
    ones = (1,) * reference.ndim
    yield whole, ones
    box = box_around((reference > 0) | (prediction > 0))
    yield box, ones
    factors = np.ones(reference.ndim, dtype=int)
    extents = np.array([stop - start for start, stop in box])
    while factors.max() < _MAX_FACTOR:
        # The finest axes first, to approach isotropic voxels; axes of few voxels are kept.
        size = np.where(extents > 2 * factors, factors * np.asarray(spacing), np.inf)
        if not np.isfinite(size).any():
            size = factors * np.asarray(spacing)
        factors = np.where(size <= size.min() * 1.5, factors + 1, factors)
        yield box, tuple(int(factor) for factor in factors)


def _averaged(array: npt.NDArray[np.float32], factors: Sequence[int]) -> npt.NDArray[np.float32]:
    """Downsample by the mean of blocks of `factors` voxels; blocks at the end may be smaller."""
    result = array
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = np.arange(0, result.shape[axis], factor)
            counts = np.diff(np.append(starts, result.shape[axis]))
            shape = [-1 if other == axis else 1 for other in range(result.ndim)]
            sums = np.add.reduceat(result, starts, axis=axis)
            result = np.divide(sums, counts.reshape(shape), dtype=np.float32)
    return result


def _picked(array: Bytes, factors: Sequence[int]) -> Bytes:
    """Downsample to the middle voxel of each block of `factors` voxels, since labels have no mean."""
    positions = [
        np.minimum(np.arange(0, extent, factor) + factor // 2, extent - 1)
        for extent, factor in zip(array.shape, factors, strict=True)
    ]
    return array[np.ix_(*positions)]


def _positions(array: npt.NDArray[np.int32], labels: Sequence[int]) -> Bytes:
    """Map label values to their position among `labels`, counted from 1; 0 for all others."""
    return label_positions(array, labels[:255]).astype(np.uint8)


def _thumbnail(grey: Bytes, reference: Bytes, prediction: Bytes, index: int, spacing: Sequence[float]) -> str:
    """Return a small PNG of one slice: the prediction tinted, the ground truth outlined in white."""
    height, width = grey.shape[1] * spacing[1], grey.shape[2] * spacing[2]
    scale = _THUMBNAIL / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resized = np.asarray(Image.fromarray(grey[index]).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    truth, predicted = (
        np.asarray(Image.fromarray(array[index]).resize(size, Image.Resampling.NEAREST))
        for array in (reference, prediction)
    )
    picture = np.repeat(resized[..., None], 3, axis=2)
    picture = tint(picture, predicted, opacity=_OPACITY)
    edge = np.zeros(truth.shape, dtype=bool)
    edge[1:] |= truth[1:] != truth[:-1]
    edge[:, 1:] |= truth[:, 1:] != truth[:, :-1]
    picture[edge] = 255
    return png_base64(np.rint(picture).clip(0, 255).astype(np.uint8))


def _remark(case: CaseImages, box: Box, shape: Sequence[int], factors: Sequence[int]) -> str:
    parts = ["raw image" if case.is_raw else "preprocessed image (cropped, resampled, normalised)"]
    if any((start, stop) != (0, extent) for (start, stop), extent in zip(box, shape, strict=True)):
        parts.append("cropped to the labels")
    if max(factors) > 1:
        parts.append(f"blocks of {' x '.join(map(str, factors))} voxels averaged")
    if len(case.image) > MAX_CHANNELS:
        parts.append(f"{MAX_CHANNELS} of {len(case.image)} channels")
    return ", ".join(parts)


def _three(values: Sequence[T]) -> tuple[T, T, T]:
    first, second, third = values
    return first, second, third
