"""Preprocess one case for training or prediction: transpose, crop, normalise, resample (nnU-Net behaviour 6.1, 6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import crop
from segwright.core.errors import ImageError
from segwright.core.memory import available_bytes
from segwright.core.torch_threads import TorchThreads
from segwright.data.cropping import content_box, crop_to_nonzero
from segwright.data.images.image_io import Volume
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.provenance import Provenance
from segwright.preprocessing.normalization import NormalizedView, normalize, normalized_view
from segwright.preprocessing.resampling import Library, resample_image, resample_label

if TYPE_CHECKING:
    from torch import Tensor

logger = getLogger(__name__)

_MAX_SPACING_RATIO = 10.0
"""Spacings of similar scans differ by less than this factor."""
_MAX_SIZE_RATIO = 100.0
"""Limit of a case's voxels after resampling, relative to the median training case."""

Floats = npt.NDArray[np.float32]
NetworkImage: TypeAlias = "Floats | NormalizedView | Tensor"
"""A preprocessed image (C, *S)."""
_Resize = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]
"""Shape after resampling, spacing before, spacing after; the arguments of `resample_image` after the array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionInput:
    """A case preprocessed for prediction."""

    image: Floats | NormalizedView  # (C, *S)
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessed:
    """A preprocessed case in memory."""

    image: Floats  # (C, *S)
    label: npt.NDArray[np.int16] | None  # (1, *S), -1 outside the non-zero region
    provenance: Provenance


def target_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the number of voxels per axis after resampling.

    >>> target_shape((10, 20, 20), (5, 1, 1), (2.5, 0.8, 1))
    (20, 25, 20)
    """
    return tuple(round(old / new * extent) for extent, old, new in zip(shape, spacing, new_spacing, strict=True))


def full_spacing(configuration: Configuration, case_spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the target spacing of all three axes; a 2D configuration keeps the case's slice spacing."""
    return (*case_spacing[: len(case_spacing) - len(configuration.spacing)], *configuration.spacing)


def preprocess_case(
    volume: Volume,
    label: npt.NDArray[Any] | None,
    plan: Plan,
    configuration: Configuration,
    *,
    threads: TorchThreads | None = None,
    library: Library = "torch",
) -> Preprocessed:
    """Transpose, crop, normalise and resample a case (nnU-Net behaviour 6.1).

    Args:
        volume: the image as read.
        label: (1, *S) in the reader's axis order, None at inference.
        plan: the plan.
        configuration: one of its configurations.
        threads: limits the threads of resampling when several cases are preprocessed in parallel.
        library: resamples the image.

    Raises:
        ImageError: image and label differ in shape or the image does not fit the plan.
    """
    if label is not None and label.shape[1:] != volume.array.shape[1:]:
        raise ImageError(
            f"image has shape {volume.array.shape[1:]}, label {label.shape[1:]}; they must have the same grid"
        )
    image, marked, provenance = _transpose_and_crop(volume, label, plan, configuration)
    _require_plausible_size(provenance, plan, configuration, len(image))
    cropped = None if label is None else marked
    image, cropped = _normalize_and_resample(
        image, cropped, marked, provenance, plan, configuration, threads, library=library
    )
    return Preprocessed(image=image, label=cropped, provenance=provenance)


def preprocess_for_prediction(
    volume: Volume, plan: Plan, configuration: Configuration, *, library: Library = "torch"
) -> PredictionInput:
    """Preprocess a case for prediction; without resampling, the image is normalised lazily, patch by patch.

    Args:
        volume: the image as read.
        plan: the plan.
        configuration: one of its configurations.
        library: resamples the image.

    Raises:
        ImageError: the image does not fit the plan.
    """
    image, mask, provenance = _transpose_and_crop(volume, None, plan, configuration)
    _require_plausible_size(provenance, plan, configuration, len(image))
    if _target_grid(provenance, configuration)[0] == image.shape[1:]:
        view = normalized_view(
            image,
            configuration.normalization_schemes,
            configuration.use_mask_for_norm,
            plan.foreground_intensity_properties_per_channel,
        )
        if view is not None:
            return PredictionInput(image=view, provenance=provenance)
    image, _ = _normalize_and_resample(image, None, mask, provenance, plan, configuration, library=library)
    return PredictionInput(image=image, provenance=provenance)


def _transpose_and_crop(
    volume: Volume, label: npt.NDArray[Any] | None, plan: Plan, configuration: Configuration
) -> tuple[Floats, npt.NDArray[np.int16] | None, Provenance]:
    """Transpose and crop a case.

    Returns:
        Image (C, *S); label, or without one 0, with -1 outside the non-zero region (1, *S), None if neither is needed;
        provenance.
    """
    order = plan.transpose_forward
    axes = (0, *(axis + 1 for axis in order))
    transposed = volume.array.transpose(axes)
    marked: npt.NDArray[np.int16] | None = None
    if label is None and not any(configuration.use_mask_for_norm):
        box = content_box(transposed)  # the mask is not needed
        image = crop(transposed, box)
    else:
        image, marked, box = crop_to_nonzero(transposed, None if label is None else label.transpose(axes))
    provenance = Provenance(
        properties=volume.properties,
        shape_before_cropping=tuple(transposed.shape[1:]),
        box=box,
        shape_after_cropping=tuple(image.shape[1:]),
        spacing=tuple(float(volume.spacing[axis]) for axis in order),
        transpose_forward=tuple(order),
        transpose_backward=tuple(plan.transpose_backward),
    )
    return image, marked, provenance


def _target_grid(provenance: Provenance, configuration: Configuration) -> _Resize:
    """Return the shape after resampling, and the spacing before and after it.

    Raises:
        ImageError: it would have no voxel.
    """
    shape, spacing = provenance.shape_after_cropping, provenance.spacing
    new_spacing = full_spacing(configuration, spacing)
    grid = (target_shape(shape, spacing, new_spacing), spacing, new_spacing)
    if min(grid[0]) < 1:
        raise ImageError(
            f"shape {shape} at spacing {spacing} has no voxel at the target spacing {new_spacing}; check the "
            "spacing in the file's header"
        )
    return grid


def _require_plausible_size(
    provenance: Provenance, plan: Plan, configuration: Configuration, num_channels: int
) -> None:
    """Require a plausible size after resampling, before memory is allocated; warn about an unusual spacing.

    Raises:
        ImageError: the resampled image exceeds the free memory, or spacing and size are both far from those of the
            training cases, as with a wrong header.
    """
    shape, spacing, new_spacing = _target_grid(provenance, configuration)
    usual = plan.original_median_spacing_after_transp
    sizes = zip(plan.original_median_shape_after_transp, usual, new_spacing, strict=False)
    times = prod(shape) / max(prod(size * old / new for size, old, new in sizes), 1.0)
    ratios = [own / other for own, other in zip(spacing, usual, strict=False)]
    is_far = any(not 1 / _MAX_SPACING_RATIO <= ratio <= _MAX_SPACING_RATIO for ratio in ratios)
    needed, free = 4 * num_channels * prod(shape), available_bytes()
    case_text = f"shape {provenance.shape_after_cropping} at spacing {_rounded(spacing)}"
    median = f"the median training case has spacing {_rounded(usual)}; check the spacing in the file's header"
    if needed > free or (is_far and times > _MAX_SIZE_RATIO):
        raise ImageError(
            f"{case_text} becomes {shape} at spacing {_rounded(new_spacing)}, which needs {needed / 2**30:.3g} GiB "
            f"({free / 2**30:.3g} GiB are free) and is {times:.3g} times the size of a training case; {median}"
        )
    if is_far:
        logger.warning("%s: %s", case_text, median)


def _rounded(spacing: Sequence[float]) -> str:
    return f"({', '.join(f'{extent:.4g}' for extent in spacing)})"


def _normalize_and_resample(
    image: Floats,
    label: npt.NDArray[np.int16] | None,
    mask: npt.NDArray[np.int16] | None,
    provenance: Provenance,
    plan: Plan,
    configuration: Configuration,
    threads: TorchThreads | None = None,
    *,
    library: Library,
) -> tuple[Floats, npt.NDArray[np.int16] | None]:
    """Normalise and resample a cropped image, and resample its label.

    Args:
        image: (C, *S).
        label: (1, *S), or None at inference.
        mask: (1, *S), -1 outside the non-zero region; None if no channel needs it.
        provenance: of the crop.
        plan: the plan.
        configuration: one of its configurations.
        threads: limits the threads of resampling.
        library: resamples the image.
    """
    grid = _target_grid(provenance, configuration)
    image = normalize(
        image,
        configuration.normalization_schemes,
        configuration.use_mask_for_norm,
        mask,
        plan.foreground_intensity_properties_per_channel,
    )
    if grid[0] != image.shape[1:]:
        if threads is not None:
            threads.limit()
        image, label = _resample(image, label, grid, configuration, library)
    return image.astype(np.float32, copy=False), label


def _resample(
    image: Floats,
    label: npt.NDArray[np.int16] | None,
    grid: _Resize,
    configuration: Configuration,
    library: Library,
) -> tuple[Floats, npt.NDArray[np.int16] | None]:
    function, kwargs = configuration.resampling_fn_data, configuration.resampling_fn_data_kwargs
    image = resample_image(image, *grid, function, kwargs, library=library)
    if label is not None:
        label = resample_label(label, *grid, configuration.resampling_fn_seg, configuration.resampling_fn_seg_kwargs)
    return image, label
