"""HTML page of augmented training samples: original patch, augmented patch, labels and drawn parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

import segwright
from segwright.report.colours import GREY_PERCENTILES, label_colour, label_positions, tint
from segwright.report.html import csp_hash, fill_template, png_base64, template_text
from segwright.report.overlays.slices import choose_slices, class_areas

_MAX_CHANNELS: Final = 3
_MAX_EXTENT_PX: Final = 260
_OVERLAY_OPACITY: Final = 0.45
_STYLE: Final = """
.shown { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.shown figure { margin: 0; }
.shown img { display: block; image-rendering: pixelated; background: #000; max-width: 100%; }
.shown figcaption { color: var(--quiet); font-size: 0.85rem; max-width: 16rem; }
.shown td { white-space: normal; text-align: left; overflow-wrap: anywhere; } .shown th { text-align: left; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """A sample before and after augmentation: images (C, *S), label maps (*S); S has two or three axes.

    Attributes:
        title: case and position of the patch.
        plain: the patch before augmentation.
        plain_labels: label map of that patch; negative outside the case.
        augmented: the patch after augmentation.
        augmented_labels: label map of that patch.
        drawn: transforms in order, each with its formatted parameters.
    """

    title: str
    plain: npt.NDArray[np.float32]
    plain_labels: npt.NDArray[Any]
    augmented: npt.NDArray[np.float32]
    augmented_labels: npt.NDArray[Any]
    drawn: Sequence[tuple[str, str]]


def render(
    samples: Iterable[ShownSample],
    *,
    title: str,
    notes: Sequence[str],
    labels: Mapping[int, str],
    channels: Sequence[str],
    spacing: Sequence[float],
    created: datetime,
    previous: Sequence[str] = (),
) -> str:
    """Render the samples as a self-contained HTML page.

    Args:
        samples: the samples; consumed one at a time to bound memory.
        title: title of the page.
        notes: lines about recipe, patch and seed.
        labels: name by value for all labels except background; other values get the last colour.
        channels: names of the image channels; at most three are drawn.
        spacing: spacing of the patch, for the aspect ratio of the pictures.
        created: creation time.
        previous: names of further channels, the previous stage's labels in a cascade; at most three are drawn.
    """
    style = template_text("report.css") + _STYLE
    shown = [
        *list(enumerate(channels))[:_MAX_CHANNELS],
        *list(enumerate(previous, start=len(channels)))[:_MAX_CHANNELS],
    ]
    return fill_template(
        "augmentation.html",
        title=title,
        notes=notes,
        legend=[(name, label_colour(position)) for position, name in enumerate(labels.values(), start=1)],
        samples=[
            {
                "title": sample.title,
                "pictures": _pictures(sample, list(labels), shown, spacing),
                "drawn": sample.drawn,
            }
            for sample in samples
        ],
        version=segwright.__version__,
        created=created.strftime("%Y-%m-%d %H:%M"),
        style=Markup(style),
        style_hash=csp_hash(style),
    )


def parameter_text(values: npt.NDArray[Any]) -> str:
    """Format drawn values; more than 12 are summarised by count and range.

    >>> parameter_text(np.array([0.123456, 2.0])), parameter_text(np.arange(40))
    ('0.123, 2', '40 values, 0 to 39')
    """
    flat = np.asarray(values).ravel()
    if flat.dtype == bool:
        return ", ".join("yes" if value else "no" for value in flat)
    if flat.size > 12:
        return f"{flat.size} values, {flat.min():.3g} to {flat.max():.3g}"
    return ", ".join(f"{value:.3g}" for value in flat)


def affine_text(matrix: npt.NDArray[np.float64]) -> str:
    """Format rotation angles and scaling factors of a matrix of `augmentation.spatial.Affine`.

    >>> affine_text(np.diag([1.25, 1.25]))
    'scaling 1.25'
    """
    factors = np.linalg.norm(matrix, axis=0)
    rotation = matrix / factors
    if len(matrix) == 3:
        radians = [
            math.atan2(rotation[2, 1], rotation[2, 2]),
            -math.asin(float(np.clip(rotation[2, 0], -1, 1))),
            math.atan2(rotation[1, 0], rotation[0, 0]),
        ]
    else:
        radians = [math.atan2(rotation[1, 0], rotation[0, 0])]
    parts = []
    if any(abs(angle) > 1e-6 for angle in radians):
        parts.append(f"rotation {', '.join(f'{math.degrees(angle):.1f}' for angle in radians)} degrees")
    if np.ptp(factors) > 1e-6:
        parts.append(f"scaling {', '.join(f'{factor:.3g}' for factor in factors)}")
    elif abs(factors[0] - 1) > 1e-6:
        parts.append(f"scaling {factors[0]:.3g}")
    return "; ".join(parts)


def _pictures(
    sample: ShownSample, values: Sequence[int], channels: Sequence[tuple[int, str]], spacing: Sequence[float]
) -> list[dict[str, Any]]:
    """Draw one slice: each channel before and after augmentation, and the labels over the first channel."""
    index = _informative_slice(sample, values)
    where = "" if index is None else f", slice {index + 1} of {len(sample.augmented_labels)}"

    def plane(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = array if index is None else array[..., index, :, :]
        return result

    pictures = []
    for channel, name in channels:
        low, high = np.percentile(sample.plain[channel], GREY_PERCENTILES)
        versions = (
            ("original", sample.plain, sample.plain_labels),
            ("augmented", sample.augmented, sample.augmented_labels),
        )
        for version, image, label in versions:
            grey = np.clip((plane(image)[channel] - low) / max(high - low, 1e-6), 0, 1) * 255
            canvas = np.repeat(grey[..., None], 3, axis=-1)
            pictures.append(_picture(canvas, f"{name}, {version}{where}", spacing))
            if channel == 0:
                shown = label_positions(plane(label), values, mark_others=True)
                overlaid = tint(canvas, shown, opacity=_OVERLAY_OPACITY)
                pictures.append(_picture(overlaid, f"labels, {version}", spacing))
    return pictures


def _informative_slice(sample: ShownSample, values: Sequence[int]) -> int | None:
    """Return the slice that shows the labels best, before and after augmentation; None in 2D."""
    if sample.augmented_labels.ndim == 2:
        return None
    plain, augmented = (
        class_areas(label_positions(each, values), len(values), axis=0)
        for each in (sample.plain_labels, sample.augmented_labels)
    )
    return choose_slices(plain + augmented, 1)[0]


def _picture(canvas: npt.NDArray[np.float32], caption: str, spacing: Sequence[float]) -> dict[str, Any]:
    height, width = (size * step for size, step in zip(canvas.shape[:2], spacing[-2:], strict=True))
    scale = _MAX_EXTENT_PX / max(height, width)
    return {
        "data": png_base64(canvas.astype(np.uint8)),
        "caption": caption,
        "width": max(1, round(width * scale)),
        "height": max(1, round(height * scale)),
    }
