"""Flag out-of-distribution inputs: the range of geometry and intensities of the training cases, and what is outside.

The range of the training cases is widened by a margin. It is wider for few cases, and wide enough that almost no
training case would be flagged if it were compared with the others. Unlike a distance to the mean, a range suits any
distribution (intensities of MR have no unit), and says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from segwright.data.images.image_io import Volume
from segwright.data.images.orientation import orientation_code

MIN_CASES: Final = 5
"""With fewer cases ranges are unknown: only other spacings, other sizes and another modality are flagged."""

CT_LEVEL: Final = -math.log1p(1000)
"""The lowest percentile of a CT, which contains air, as given by `measure`."""

_SAMPLED_VOXELS = 2**17
_MARGINS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Share of the width of the range, added on both sides; the first that flags few enough training cases is used."""
_MAX_FLAGGED_SHARE = 0.01
"""Of training cases."""
_MARGIN_CASES = 10
"""With this many cases the margin is doubled, since the range of a sample grows with its size."""
_LEVELS = (1, 25, 50, 75, 99)
_MIN_WIDTHS: Mapping[str, float] = {"spacing": 0.4, "extent": 0.7, "level": 0.5, "form": 0.1, "noise": 0.7}
"""Minimum widths, so that equal training cases do not make every other case an outlier: factors of 1.5, 2 and 2 for
spacing, extent and noise, e^0.5 for intensities, a tenth of an image's range for the form of its histogram."""

_MIN_WIDENING: Mapping[str, float] = {"spacing": 0.7, "extent": 0.3, "level": 1.0, "form": 0.1, "noise": 0.5}
_MAX_WIDENING: Mapping[str, float] = {"spacing": 0.9, "extent": 1.1, "level": 4.0, "form": 1.0, "noise": 2.0}
"""Least and most that is added to a range on both sides, whatever its width and the number of cases: factors of 2
to 2.5 for spacing, up to 3 for extent, 55 for intensities and 7 for noise. Found on draws of 5 to 40 of 120 hippocampus
MR, 50 cardiac MR, 30 retinal photographs and 6 spinal cord MR cases: every case of another set and the CT and MR of
`example_scans` are flagged (without a limit down to 38 %), of held-out cases 0 to 1 % from 12 training cases on and at
most 6 % with 5 (without a floor up to 4 % and 7 %)."""
_FEW_CASES_WIDENING: Mapping[str, float] = {"spacing": 0.5, "extent": 1.1}
"""What is added with fewer than `MIN_CASES`, too few to know the width of a range: a factor of 1.65 for spacing.

On 12 draws of 2 and of 4 cases of each of the sets above and 6 mouse brain MR no held-out case is flagged (with a
factor of 1.5 up to 4 % are), and every case of another set; a factor of 2.5 let MR of 1.9 times the spacing pass.
"""
_NEGATIVE = -math.log1p(100)
"""A level below which intensities must be on a scale with negative values, such as CT."""

_LOGARITHMIC = ("spacing", "extent", "noise")


class Bounds(BaseModel):
    """Range of one measure over the training cases; logarithms, see `measure`.

    Attributes:
        low: smallest value.
        high: largest value.
    """

    model_config = ConfigDict(frozen=True)

    low: float
    high: float


class TrainingRange(BaseModel):
    """Range of geometry and intensities of the training cases.

    Attributes:
        cases: number of cases.
        margin: share of their width by which ranges are widened on both sides.
        bounds: by measure.
        orientations: of the axes, such as LPS; empty if the files do not store them.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1] = 1
    cases: int
    margin: float
    bounds: Mapping[str, Bounds]
    orientations: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], orientations: Sequence[str | None] = ()) -> TrainingRange:
        """Return the range of cases; a row is the result of `measure` for a case."""
        names = list(rows[0]) if rows else []
        table = np.array([[row[name] for name in names] for row in rows], dtype=float).reshape(len(rows), len(names))
        bounds = {
            name: Bounds(low=float(low), high=float(high))
            for name, low, high in zip(
                names, table.min(axis=0, initial=np.inf), table.max(axis=0, initial=-np.inf), strict=False
            )
        }
        known = tuple(sorted({each for each in orientations if each}))
        return cls(cases=len(rows), margin=_margin(names, table), bounds=bounds, orientations=known)

    def findings(self, volume: Volume) -> tuple[str, ...]:
        """Describe in which measures an image is outside the range."""
        found = []
        for name, value in measure(volume).items():
            bounds = self.bounds.get(name)
            if bounds is None:
                continue
            widening = self._widening(name, bounds)
            if not bounds.low - widening <= value <= bounds.high + widening:
                found.append(_describe(name, value, bounds))
            elif other := _other_modality(name, value, bounds):
                found.append(other)
        axes = orientation_code(volume.properties)
        if axes and self.orientations and axes not in self.orientations:
            found.append(f"axes run {axes}, those of the training cases {' or '.join(self.orientations)}")
        return tuple(found)

    def _widening(self, name: str, bounds: Bounds) -> float:
        """Return by how much the range of a measure is widened on both sides."""
        kind = name.split()[0]
        if self.cases < MIN_CASES:
            return _FEW_CASES_WIDENING.get(kind, math.inf)
        width = self.margin * max(bounds.high - bounds.low, _min_width(name))
        return min(max(width, _MIN_WIDENING[kind]), _MAX_WIDENING[kind])


def measure(volume: Volume) -> dict[str, float]:
    """Return the measures of an image that are compared with those of the training cases, from a sample of its voxels.

    * `spacing A`, `extent A`: logarithm of the value in mm along axis A.
    * `level C P`: percentile P of channel C without voxels of 0, as sign(x) log(1 + |x|), which shows both a wrong
      factor and a wrong offset.
    * `form C P`: where percentile P lies between the 1st and the 99th, from 0 to 1.
    * `noise C`: logarithm of the mean difference of neighbours, relative to the range between those percentiles.
    """
    result: dict[str, float] = {}
    for axis, (size, spacing) in enumerate(zip(volume.array.shape[1:], volume.spacing, strict=True)):
        result[f"spacing {axis}"] = math.log(max(spacing, 1e-12))
        result[f"extent {axis}"] = math.log(max(size * spacing, 1e-12))
    for channel, image in enumerate(volume.array):
        rows = _sampled(image)
        inside = rows[rows != 0]
        values = inside if inside.size >= rows.size // 100 and inside.size else rows
        levels = [float(level) for level in np.percentile(values, _LEVELS)]
        width = max(levels[-1] - levels[0], 1e-12)
        for percent, level in zip(_LEVELS, levels, strict=True):
            result[f"level {channel} {percent}"] = math.copysign(math.log1p(abs(level)), level)
        for percent, level in zip(_LEVELS[1:-1], levels[1:-1], strict=True):
            result[f"form {channel} {percent}"] = (level - levels[0]) / width
        steps = np.abs(np.diff(rows, axis=-1))
        noise = float(steps.mean(dtype=np.float64)) / width if steps.size else 0.0
        result[f"noise {channel}"] = math.log(max(noise, 1e-6))
    return result


def _sampled(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return whole rows (planes, columns, X) of an image (Z, Y, X), about `_SAMPLED_VOXELS` voxels at most."""
    step = max(1, math.ceil(math.sqrt(image.size / _SAMPLED_VOXELS)))
    along = min(step, image.shape[0])
    return image[::along, :: max(1, step * step // along)]


def _margin(names: Sequence[str], table: npt.NDArray[np.float64]) -> float:
    """Return the margin for a table (cases, measures)."""
    count = len(table)
    if count < MIN_CASES:
        return _MARGINS[-1]
    ordered = np.sort(table, axis=0)
    # Each case is compared with the others: the smallest with the second smallest.
    low = np.where(table == ordered[0], ordered[1], ordered[0])
    high = np.where(table == ordered[-1], ordered[-2], ordered[-1])
    width = np.maximum(high - low, [_min_width(name) for name in names])
    apart = np.maximum(low - table, table - high) / width
    worst = apart.max(axis=1)
    for margin in _MARGINS:
        wider = margin * (1 + _MARGIN_CASES / count)
        if (worst > wider).mean() <= _MAX_FLAGGED_SHARE:
            return wider
    return _MARGINS[-1] * (1 + _MARGIN_CASES / count)


def _min_width(name: str) -> float:
    return _MIN_WIDTHS[name.split()[0]]


def _other_modality(name: str, value: float, bounds: Bounds) -> str | None:
    """Describe that intensities have another zero than those of training, if they do."""
    kind, channel, *percent = name.split()
    if kind != "level" or percent != ["1"]:
        return None
    if bounds.low >= 0 and value < _NEGATIVE:
        return f"channel {channel}: has intensities below {_level(value):.4g}, as CT has; in training none was negative"
    if bounds.high < _NEGATIVE and value >= 0:
        return f"channel {channel}: has no negative intensities, which every training case had, as CT has"
    return None


def _level(value: float) -> float:
    """Return the intensity of a level; undoes the logarithm of `measure`."""
    return math.copysign(math.expm1(abs(value)), value)


def _describe(name: str, value: float, bounds: Bounds) -> str:
    kind, place, *percent = name.split()
    numbers = (value, bounds.low, bounds.high)
    if kind in _LOGARITHMIC:
        found, low, high = (math.exp(number) for number in numbers)
    elif kind == "level":
        found, low, high = (_level(number) for number in numbers)
    else:
        found, low, high = numbers
    what = {
        "spacing": f"spacing of axis {place} is {found:.4g} mm",
        "extent": f"the image is {found:.4g} mm long along axis {place}",
        "level": f"channel {place}: {percent[0] if percent else ''} % of the intensities are below {found:.4g}",
        "form": f"channel {place}: the {percent[0] if percent else ''} % intensity lies at {found:.2f} of the range",
        "noise": f"channel {place}: neighbours differ by {found:.3g} of the intensity range",
    }[kind]
    return f"{what}, in training {low:.4g} to {high:.4g}"
