"""Intensity normalisation schemes, by the names in plans (nnU-Net behaviour 6.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ImageError, PlanError
from segwright.core.extensions.registry import Registry, import_reference, is_reference
from segwright.core.extensions.trust import CodeTrust
from segwright.core.extensions.user_code import UserCodeError, source_location, user_call
from segwright.data.images.intensities import MAX_ABSOLUTE

Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Intensities: TypeAlias = Mapping[str, float]
"""Foreground intensity statistics of the dataset."""

Scheme = Callable[[Floats, Mask | None, Intensities], Floats]
"""A custom scheme (`module:attr`): fn(channel (*S), mask (*S) or None, intensities) -> normalised channel.

The mask is the non-zero region if the plan uses it, else None. The channel must not be changed in place."""

ZSCORE = "ZScoreNormalization"

_MIN_SCALE = 1e-8
"""Smallest divisor (nnU-Net's epsilon for float32), unless the intensities themselves are that small."""
_ROUNDING = 1e-6
"""Relative; smaller differences are float32 rounding of a constant image."""
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_MIN_SQUARED, _MAX_SQUARED = 1e-15, 1e15
"""Range of deviations whose squares float32 represents at full precision."""
_MAX_RGB = 255
_NUM_PARTS = 64
"""Parts of a channel that are squared one after another, to save memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A voxelwise normalisation: clip, subtract, divide."""

    low: float | None = None
    high: float | None = None
    shift: float = 0.0
    scale: float = 1.0

    def __call__(self, values: Floats) -> Floats:
        """Return new values, float32."""
        if self.low is None:
            result: Floats = np.subtract(values, np.float32(self.shift))
        else:
            result = values.clip(np.float32(self.low), np.float32(self.high))
            result -= np.float32(self.shift)
        result /= np.float32(self.scale)
        return result


SCHEMES: Registry[Callable[[Floats, Intensities], Linear]] = Registry("normalization scheme")
"""Built-in schemes by name: fn(voxels, intensities) -> `Linear`."""


class NormalizedView:
    """A lazily normalised case (C, *S): patches are normalised when sliced, without a second full-size array.

    Args:
        image: (C, *S) float32, not copied.
        channels: the normalisation of each channel.
    """

    def __init__(self, image: Floats, channels: Sequence[Linear]) -> None:
        self._image = image
        self._channels = tuple(channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S)."""
        return self._image.shape

    @property
    def ndim(self) -> int:
        """Number of axes, channels included."""
        return self._image.ndim

    def __getitem__(self, where: tuple[Any, ...]) -> Floats:
        """Return a new normalised array of all channels; `where` must begin with a full slice."""
        assert where[0] == slice(None), "the first index must be slice(None)"
        part = self._image[where]
        result = np.empty(part.shape, dtype=np.float32)  # C order, independent of the image
        for index, channel in enumerate(self._channels):
            result[index] = channel(part[index])
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return the whole case, normalised."""
        return self[(slice(None),)].astype(dtype or np.float32, copy=False)


def normalize(
    image: Floats,
    schemes: Sequence[str],
    use_mask: Sequence[bool],
    label: npt.NDArray[np.int16] | None,
    intensities: Mapping[str, Intensities],
) -> Floats:
    """Normalise a case.

    Args:
        image: (C, *S) float32.
        schemes: name or `module:attr` per channel.
        use_mask: per channel, whether statistics and result are restricted to the non-zero region.
        label: (1, *S), -1 outside the non-zero region; required if a mask is used.
        intensities: the plan's foreground statistics, keyed by channel index as a string.

    Returns:
        (C, *S) float32, a new array.

    Raises:
        PlanError: the plan has another number of channels or lacks a value.
        ImageError: the scheme cannot be applied to these intensities.
    """
    _require_channels(image, schemes, use_mask)
    mask = None if label is None or not any(use_mask) else label[0] >= 0
    # The normalised array of a single channel is the result already.
    result = np.empty(image.shape if len(image) > 1 else (1, 0), dtype=np.float32)
    for index, (channel, name, masked) in enumerate(zip(image, schemes, use_mask, strict=True)):
        normalized = _normalize_channel(channel, name, mask if masked else None, intensities, index)
        if len(image) == 1:
            return normalized[None].astype(np.float32, order="C", copy=np.may_share_memory(normalized, image))
        result[index] = normalized
    return result


def normalized_view(
    image: Floats, schemes: Sequence[str], use_mask: Sequence[bool], intensities: Mapping[str, Intensities]
) -> NormalizedView | None:
    """Return a lazy view equal to `normalize`; None if a mask or a custom scheme needs the whole array.

    Raises:
        PlanError: as for `normalize`.
        ImageError: as for `normalize`.
    """
    _require_channels(image, schemes, use_mask)
    if any(use_mask) or any(":" in name for name in schemes):
        return None
    return NormalizedView(
        image,
        [
            _fit_scheme(channel, name, intensities, at)
            for at, (channel, name) in enumerate(zip(image, schemes, strict=True))
        ],
    )


def load_schemes(names: Iterable[str], trust: CodeTrust, *, source: str) -> None:
    """Import the schemes that are given as `module:attr`, before any case is read.

    Args:
        names: of a plan.
        trust: decides which of them may be imported.
        source: of the names, for messages.

    Raises:
        ModelError: one is not trusted.
        SegwrightError: one does not exist, or its module fails to import.
    """
    for name in dict.fromkeys(filter(is_reference, names)):
        trust.require(name, kind=SCHEMES.kind, source=source)
        trust.load(name, kind=SCHEMES.kind)


def _require_channels(image: Floats, schemes: Sequence[str], use_mask: Sequence[bool]) -> None:
    if not len(image) == len(schemes) == len(use_mask):
        raise PlanError(
            f"the plan normalises {len(schemes)} channels, the image has {len(image)}; use the plan of this dataset"
        )


def _normalize_channel(
    channel: Floats, name: str, mask: Mask | None, intensities: Mapping[str, Intensities], index: int
) -> Floats:
    if ":" in name:
        scheme: Scheme = import_reference(name, kind=SCHEMES.kind)
        with user_call(scheme, f"normalization scheme '{name}'"), _report_missing_statistics(name, index):
            result: object = scheme(channel, mask, intensities.get(str(index), {}))
        if isinstance(result, np.ndarray) and result.shape == channel.shape:
            return result
        shown = f"an array of shape {result.shape}" if isinstance(result, np.ndarray) else f"a {type(result).__name__}"
        raise UserCodeError(
            f"{source_location(scheme)}: normalization scheme '{name}' returned {shown}; it must return an array of "
            f"the channel's shape {channel.shape}"
        )
    if mask is None or name != ZSCORE:  # only z-scores use the mask
        return _fit_scheme(channel, name, intensities, index)(channel)
    inside = channel[mask]
    normalized = np.array(channel, dtype=np.float32)
    if inside.size:  # An all-zero image has an empty mask (nnU-Net behaviour 3.1); nnU-Net gets NaN there.
        normalized[mask] = _fit_scheme(inside, name, intensities, index)(inside)
    return normalized


def _fit_scheme(values: Floats, name: str, intensities: Mapping[str, Intensities], index: int) -> Linear:
    with _report_missing_statistics(name, index):
        return SCHEMES.get(name)(values, intensities.get(str(index), {}))


@contextmanager
def _report_missing_statistics(name: str, index: int) -> Iterator[None]:
    """Report statistics that the plan lacks."""
    try:
        yield
    except KeyError as error:
        raise PlanError(
            f"{name} of channel {index} needs {error} from the plan's foreground_intensity_properties_per_channel; "
            "plan the dataset again"
        ) from error


def _zscore(values: Floats, intensities: Intensities) -> Linear:
    mean = float(np.float32(values.mean(dtype=np.float64)))
    std = _standard_deviation(values, mean, np.float32)
    if not _MIN_SQUARED < std < _MAX_SQUARED:  # float32 as in nnU-Net, unless squares lose precision
        std = _standard_deviation(values, mean, np.float64)
    largest = 0.0 if std >= _MIN_SCALE else max(-float(values.min()), float(values.max()))
    return Linear(shift=mean, scale=_scale(std, largest))


def _standard_deviation(values: Floats, mean: float, dtype: type[np.float32] | type[np.float64]) -> float:
    """Return the standard deviation, given the mean; differences are squared in `dtype` and summed in float64."""
    squares = 0.0
    for part in np.array_split(values, _NUM_PARTS):  # in parts, so that no second full-size array is needed
        centred = np.subtract(part, np.float32(mean), dtype=dtype)
        with np.errstate(over="ignore", under="ignore"):
            squares += float(np.square(centred, out=centred).sum(dtype=np.float64))
    return float(np.sqrt(squares / values.size))


def _scale(width: float, magnitude: float) -> float:
    """Return the divisor for intensities: their width, or the epsilon if the width is only rounding error.

    Args:
        width: standard deviation or range.
        magnitude: largest absolute intensity.
    """
    is_contrast = width > _ROUNDING * magnitude and width > _SMALLEST_NORMAL
    return width if width >= _MIN_SCALE or is_contrast else _MIN_SCALE


def _ct(values: Floats, intensities: Intensities) -> Linear:
    for key in ("percentile_00_5", "percentile_99_5", "mean", "std"):
        if not abs(intensities[key]) < MAX_ABSOLUTE:  # also rejects NaN
            raise PlanError(
                f"foreground_intensity_properties_per_channel: {key} is {intensities[key]} in the plan; plan the "
                "dataset again"
            )
    return Linear(
        low=intensities["percentile_00_5"],
        high=intensities["percentile_99_5"],
        shift=intensities["mean"],
        scale=_scale(intensities["std"], max(-intensities["percentile_00_5"], intensities["percentile_99_5"])),
    )


def _unchanged(values: Floats, intensities: Intensities) -> Linear:
    return Linear()


def _rescale_to_0_1(values: Floats, intensities: Intensities) -> Linear:
    low, high = values.min(), values.max()
    return Linear(shift=float(low), scale=_scale(float(high - low), max(-float(low), float(high))))


def _rgb_to_0_1(values: Floats, intensities: Intensities) -> Linear:
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > _MAX_RGB:
        raise ImageError(
            f"RGBTo01Normalization expects intensities of 0 to {_MAX_RGB}, found {low:g} to {high:g}; choose "
            "another channel name in dataset.json"
        )
    return Linear(scale=_MAX_RGB)


for _name, _scheme in (
    (ZSCORE, _zscore),
    ("CTNormalization", _ct),
    ("NoNormalization", _unchanged),
    ("RescaleTo01Normalization", _rescale_to_0_1),
    ("RGBTo01Normalization", _rgb_to_0_1),
):
    SCHEMES.register(_name, _scheme)
