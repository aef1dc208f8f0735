"""Intensity normalisation, channel by channel, under the names that plans use (nnU-Net 2.8.1 behaviour, spec A 6.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError, PlanError
from segwright.core.registry import Registry, import_reference

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

Scheme = Callable[[Floats, Mask | None, Mapping[str, float]], Floats]
"""fn(channel (*S), mask (*S) or None, foreground intensity statistics of the dataset) -> normalised channel.

The mask is the non-zero region where the plan asks for it, else None. The channel must not be changed in place."""

SCHEMES: Registry[Scheme] = Registry("normalization scheme")

_SMALLEST_SCALE = 1e-8
"""No division by less, nnU-Net's epsilon for float32."""
_LARGEST_RGB = 255
_PARTS = 64


def normalize(
    image: Floats,
    schemes: Sequence[str],
    use_mask: Sequence[bool],
    label: npt.NDArray[np.int16] | None,
    intensities: Mapping[str, Mapping[str, float]],
) -> Floats:
    """Normalise a case.

    Args:
        image: (C, *S) float32.
        schemes: name of a scheme, or `module:attr`, for each channel.
        use_mask: for each channel whether statistics and result are limited to the non-zero region.
        label: (1, *S), -1 outside the non-zero region; needed where a mask is used.
        intensities: the plan's foreground statistics, by channel index as text.

    Returns:
        (C, *S) float32, a new array.

    Raises:
        PlanError: the plan does not fit the channels or lacks a value.
        ImageError: the intensities do not fit the scheme.
    """
    if not len(image) == len(schemes) == len(use_mask):
        raise PlanError(
            f"the plan normalises {len(schemes)} channels, the image has {len(image)}; use the plan of this dataset"
        )
    mask = None if label is None or not any(use_mask) else label[0] >= 0
    # With one channel its normalised array is the result already.
    result = np.empty(image.shape if len(image) > 1 else (1, 0), dtype=np.float32)
    for index, (channel, name, masked) in enumerate(zip(image, schemes, use_mask, strict=True)):
        scheme: Scheme = import_reference(name, kind=SCHEMES.kind) if ":" in name else SCHEMES.get(name)
        try:
            normalized = scheme(channel, mask if masked else None, intensities.get(str(index), {}))
        except KeyError as error:
            raise PlanError(
                f"{name} of channel {index} needs {error} from the plan's foreground_intensity_properties_per_channel; "
                "plan the dataset again"
            ) from error
        if len(image) == 1:
            return normalized[None].astype(np.float32, order="C", copy=np.may_share_memory(normalized, image))
        result[index] = normalized
    return result


def _zscore(channel: Floats, mask: Mask | None, intensities: Mapping[str, float]) -> Floats:
    values = channel if mask is None else channel[mask]
    if not values.size:
        return channel  # An all-zero image has no inside (spec A, S-14); nnU-Net averages nothing and gets NaN.
    mean = values.mean(dtype=np.float64)
    centred: Floats = np.subtract(values, np.float32(mean))
    # In parts, for the squares of all of it take as much memory as the image.
    squares = sum(float(np.square(part).sum(dtype=np.float64)) for part in np.array_split(centred, _PARTS))
    scale = max(float(np.sqrt(squares / centred.size)), _SMALLEST_SCALE)
    centred /= np.float32(scale)
    if mask is None:
        return centred
    result = np.array(channel, dtype=np.float32)
    result[mask] = centred
    return result


def _ct(channel: Floats, mask: Mask | None, intensities: Mapping[str, float]) -> Floats:
    low, high = intensities["percentile_00_5"], intensities["percentile_99_5"]
    result: Floats = channel.clip(np.float32(low), np.float32(high))
    result -= np.float32(intensities["mean"])
    result /= np.float32(max(intensities["std"], _SMALLEST_SCALE))
    return result


def _unchanged(channel: Floats, mask: Mask | None, intensities: Mapping[str, float]) -> Floats:
    return channel


def _rescale_to_0_1(channel: Floats, mask: Mask | None, intensities: Mapping[str, float]) -> Floats:
    result: Floats = channel - channel.min()
    result /= max(result.max(), np.float32(_SMALLEST_SCALE))
    return result


def _rgb_to_0_1(channel: Floats, mask: Mask | None, intensities: Mapping[str, float]) -> Floats:
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > _LARGEST_RGB:
        raise ImageError(
            f"RGBTo01Normalization expects intensities of 0 to {_LARGEST_RGB}, found {low:g} to {high:g}; choose "
            "another channel name in dataset.json"
        )
    result: Floats = np.divide(channel, np.float32(_LARGEST_RGB))
    return result


for _name, _scheme in (
    ("ZScoreNormalization", _zscore),
    ("CTNormalization", _ct),
    ("NoNormalization", _unchanged),
    ("RescaleTo01Normalization", _rescale_to_0_1),
    ("RGBTo01Normalization", _rgb_to_0_1),
):
    SCHEMES.register(_name, _scheme)
